package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// devState is what a running dev cluster writes down, so that commands in other terminals find it, and so that the next
// run in the same folder gives the nodes the ports under which they know each other.
type devState struct {
	// PID of the dev process. 0: it has ended.
	PID int `json:"pid"`
	// DataDir holds the nodes' folders.
	DataDir string `json:"data_dir"`
	// Control is the URL at which the dev process takes orders, Token what it asks for.
	Control string `json:"control"`
	Token   string `json:"token"`
	// Nodes in order.
	Nodes []devAddresses `json:"nodes"`
	// TLS has the files that clients need. Nil: the cluster uses plaintext.
	TLS *devTLS `json:"tls,omitempty"`
}

// devTLS are the files with which a client is let in.
type devTLS struct {
	CACert string `json:"ca_cert"`
	Cert   string `json:"cert"`
	Key    string `json:"key"`
}

// devAddresses are the addresses of one node.
type devAddresses struct {
	Name string `json:"name"`
	GRPC string `json:"grpc_address"`
	Peer string `json:"peer_address"`
	HTTP string `json:"http_address"`
}

const (
	// devStateFile is the name of the state file in a dev cluster's data folder.
	devStateFile = "dev.json"
	// devDefaultDir is the data folder of `make run`: it is looked for in the current folder.
	devDefaultDir = ".regd-dev"
)

// userStateFile is where the last started dev cluster is noted for this user. Empty: there is no home.
func (a *app) userStateFile() string {
	if dir := a.getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "regd", devStateFile)
	}
	if home := a.getenv("HOME"); home != "" {
		return filepath.Join(home, ".local", "state", "regd", devStateFile)
	}
	return ""
}

// readDevState reads a state file. No file is no error: it is a state without nodes.
func readDevState(path string) (devState, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return devState{}, nil
	}
	if err != nil {
		return devState{}, fmt.Errorf("read state of the dev cluster: %w", err)
	}
	var s devState
	if err := json.Unmarshal(data, &s); err != nil {
		return devState{}, fmt.Errorf("read state of the dev cluster in %s: %w", path, err)
	}
	return s, nil
}

// write writes the state in one step, readable by this user only as it holds the token.
func (s devState) write(path string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state of the dev cluster: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write state of the dev cluster: %w", err)
	}
	part := path + ".part"
	if err := os.WriteFile(part, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write state of the dev cluster: %w", err)
	}
	if err := os.Rename(part, path); err != nil {
		return fmt.Errorf("write state of the dev cluster: %w", err)
	}
	return nil
}

// running tells whether the dev process lives.
func (s devState) running() bool {
	return s.PID > 0 && syscall.Kill(s.PID, 0) == nil
}

// findDev returns the running dev cluster: of the given data folder, else of the current folder, else the one that this
// user started last. where is the file that told so.
func (a *app) findDev(dataDir string) (s devState, where string, found bool) {
	paths := []string{filepath.Join(devDefaultDir, devStateFile), a.userStateFile()}
	if dataDir != "" {
		paths = []string{filepath.Join(dataDir, devStateFile)}
	}
	for _, path := range paths {
		if path == "" {
			continue
		}
		if s, err := readDevState(path); err == nil && s.running() {
			return s, path, true
		}
	}
	return devState{}, "", false
}

// grpcAddresses are the addresses for clients.
func (s devState) grpcAddresses() []string {
	var addresses []string
	for _, n := range s.Nodes {
		addresses = append(addresses, n.GRPC)
	}
	return addresses
}
