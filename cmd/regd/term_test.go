package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestCleanLeavesNothingThatATerminalObeys(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain":            "plain",
		"größe 大":          "größe 大",
		"a\x1b[31mred":     `a\x1b[31mred`,
		"a\nb\tc\r":        `a\nb\tc\r`,
		"\u202egnp.exe":    `\u202egnp.exe`,
		"bad \xff\xfe utf": `bad \xff\xfe utf`,
		"bell\a nul\x00":   `bell\a nul\x00`,
		"c1 \u009b31m":     `c1 \u009b31m`,
		"zero\u200bwidth":  `zero\u200bwidth`,
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzCleanIsPrintable(f *testing.F) {
	f.Add("a\x1b[31m\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		if strings.ContainsAny(got, "\x1b\x00\n\r\u009b\u202e") || clean(got) != got {
			t.Errorf("clean(%q) = %q", s, got)
		}
	})
}

func TestColourFollowsFlagAndEnvironment(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, flag string
		env        map[string]string
		want       paint
	}{
		{"no terminal", colorAuto, nil, false},
		{"forced by flag", colorAlways, map[string]string{"NO_COLOR": "1"}, true},
		{"forced by environment", colorAuto, map[string]string{"CLICOLOR_FORCE": "1"}, true},
		{"not forced by 0", colorAuto, map[string]string{"CLICOLOR_FORCE": "0"}, false},
		{"NO_COLOR over CLICOLOR_FORCE", colorAuto, map[string]string{"NO_COLOR": "1", "CLICOLOR_FORCE": "1"}, false},
		{"never", colorNever, map[string]string{"CLICOLOR_FORCE": "1"}, false},
	} {
		a := &app{color: tt.flag, getenv: func(name string) string { return tt.env[name] }}
		if got := a.paintFor(&bytes.Buffer{}); got != tt.want {
			t.Errorf("%s: colour %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestTableKeepsItsColumns(t *testing.T) {
	t.Parallel()
	type row struct{ name, zone, extra string }
	table := tableOf[row]{columns: []column[row]{
		{title: "NAME", text: func(r row) string { return r.name }, colour: func(row) string { return colourBad }},
		{title: "ZONE", text: func(r row) string { return r.zone }, right: true},
		{title: "EXTRA", text: func(r row) string { return r.extra }, wide: true},
	}}
	rows := []row{{"a\x1b[2J", "eu", "x"}, {"longer", "", "y"}}
	for _, tt := range []struct {
		name  string
		style tableStyle
		want  string
	}{
		{"narrow", tableStyle{headers: true}, "NAME        ZONE\na\\x1b[2J      eu\nlonger    <none>\n"},
		{"wide", tableStyle{headers: true, wide: true}, "NAME        ZONE  EXTRA\na\\x1b[2J      eu  x\nlonger    <none>  y\n"},
		{"bare", tableStyle{}, "a\\x1b[2J      eu\nlonger    <none>\n"},
		{"painted", tableStyle{paint: true}, "\x1b[31ma\\x1b[2J\x1b[0m      eu\n\x1b[31mlonger\x1b[0m    <none>\n"},
	} {
		var out bytes.Buffer
		if err := table.print(&out, rows, tt.style); err != nil || out.String() != tt.want {
			t.Errorf("%s: %v\n%q, want\n%q", tt.name, err, out.String(), tt.want)
		}
	}
}

func TestNearestFindsTypos(t *testing.T) {
	t.Parallel()
	candidates := []string{"instances", "services", "sessions", "serve", "status", "watch", "version", "verify"}
	for typed, want := range map[string]string{
		"instnces": "instances", "watc": "watch", "wacth": "watch", "SERVE": "serve", "stat": "status",
		"inst": "instances", "x": "", "nonsense": "", "se": "",
	} {
		if got := strings.Join(nearest(typed, candidates), " "); got != want {
			t.Errorf("nearest(%q) = %q, want %q", typed, got, want)
		}
	}
}

func TestShortDurationsAndSizes(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 90 * time.Second: "90s", 5 * time.Minute: "5m", 3 * time.Hour: "3h", 72 * time.Hour: "3d",
	} {
		if got := short(d); got != want {
			t.Errorf("short(%v) = %s, want %s", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0B", 1023: "1023B", 1536: "1.5KiB", 3 << 30: "3.0GiB", 1 << 63: "8.0EiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %s, want %s", n, got, want)
		}
	}
}
