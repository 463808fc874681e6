package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// unit is the text of the unit file.
func unit(t *testing.T) string {
	t.Helper()
	return read(t, "deploy/systemd/regd.service")
}

// read reads a file of the repository.
func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// analyze runs systemd-analyze on the unit with the binary under test.
func analyze(t *testing.T, text string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	file := filepath.Join(t.TempDir(), "regd.service")
	text = strings.Replace(text, "ExecStart=/usr/bin/regd", "ExecStart="+regd, 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return run(t.Context(), nil, "systemd-analyze", append(args, file)...)
}

func TestTheUnitIsValid(t *testing.T) {
	t.Parallel()
	if out, err := analyze(t, unit(t), "verify"); err != nil || out != "" {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := analyze(t, strings.Replace(unit(t), "Type=notify", "Type=notified", 1), "verify", "--man=no"); err == nil {
		t.Log("systemd-analyze verify bears an unknown Type=; it says so on stderr only")
	}
}

func TestTheUnitConfinesTheNode(t *testing.T) {
	t.Parallel()
	out, err := analyze(t, unit(t), "security", "--offline=true", "--threshold=20") // Of 100; 0 is confined best.
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The exit codes that regd documents as such must not restart it.
func TestTheUnitKnowsWhichExitsNoRestartHeals(t *testing.T) {
	t.Parallel()
	help, err := run(t.Context(), nil, regd, "--help")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, line := range regexp.MustCompile(`(?m)^ +(\d+)  serve: `).FindAllStringSubmatch(help, -1) {
		want = append(want, line[1])
	}
	if len(want) < 5 {
		t.Fatalf("only %q in\n%s", want, help)
	}
	prevented := setting(t, "RestartPreventExitStatus")
	for _, code := range want {
		if !strings.Contains(" "+prevented+" ", " "+code+" ") {
			t.Errorf("RestartPreventExitStatus=%s lacks %s", prevented, code)
		}
	}
	if setting(t, "Restart") != "always" || setting(t, "Type") != "notify" {
		t.Error("want Restart=always and Type=notify")
	}
	if stop, err := strconv.Atoi(strings.TrimSuffix(setting(t, "TimeoutStopSec"), "s")); err != nil || stop < 30 {
		t.Errorf("TimeoutStopSec: %d s, want 30 at least, as a node may take 20 to stop", stop)
	}
}

// setting is a value in the unit.
func setting(t *testing.T, name string) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^` + name + `=(.*)$`).FindStringSubmatch(unit(t))
	if found == nil {
		t.Fatalf("%s is not set", name)
	}
	return found[1]
}

func TestTheExampleConfigurationIsValid(t *testing.T) {
	t.Parallel()
	if _, err := run(t.Context(), nil, regd, "config", "check", "--config", "deploy/systemd/regd.yaml"); err != nil {
		t.Error(err)
	}
	shown, err := run(t.Context(), nil, regd, "config", "show", "--config", "deploy/systemd/regd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if dir := setting(t, "StateDirectory"); !regexp.MustCompile(`(?m)^data-dir +/var/lib/` + dir + `/`).MatchString(shown) {
		t.Errorf("data-dir is not in the StateDirectory %s:\n%s", dir, shown)
	}
}
