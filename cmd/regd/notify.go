package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// supervisor tells a service manager how the node does, by the protocol of systemd, sd_notify(3). Without one it says
// nothing.
type supervisor struct {
	log *slog.Logger
	// send tells one or more states, a line each.
	send func(states string) error
	// watchdog is the longest silence that the service manager bears. 0: any.
	watchdog time.Duration
}

func newSupervisor(log *slog.Logger) *supervisor {
	s := &supervisor{log: log, send: func(states string) error {
		_, err := daemon.SdNotify(false, states)
		return err
	}}
	var err error
	if s.watchdog, err = daemon.SdWatchdogEnabled(false); err != nil {
		log.Warn("the service manager's watchdog is not fed", "err", err)
	}
	return s
}

func (s *supervisor) say(states string) {
	if err := s.send(states); err != nil {
		s.log.Warn("the service manager was not told", "states", states, "err", err)
	}
}

// lively tells how a node does.
type lively interface {
	Ready() error
	Live() error
}

// attend says that the node has started, then how it does, until ctx ends. Started is not ready: that may take other
// nodes, and who starts them one by one must not wait here for the first. The watchdog is fed while the node is live,
// which it is without a leader or a quorum too: a restart would bring neither.
func (s *supervisor) attend(ctx context.Context, node lively) {
	every := time.Second
	if s.watchdog > 0 {
		every = min(every, s.watchdog/3)
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	s.say(daemon.SdNotifyReady)
	var said string
	for {
		told := condition(node)
		if told != said {
			said = told
			s.say("STATUS=" + told)
		}
		if s.watchdog > 0 && node.Live() == nil {
			s.say(daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// condition tells people in a line whether a node is ready, or why not.
func condition(node lively) string {
	if err := node.Live(); err != nil {
		return "failed: " + clean(err.Error())
	}
	if err := node.Ready(); err != nil {
		return "not ready: " + clean(err.Error())
	}
	return "ready"
}
