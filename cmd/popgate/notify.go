package main

import (
	"context"
	"net/netip"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"popgate/internal/relay"
)

// supervisor is who started the daemon and wants to hear how it is. Its zero
// value is nobody.
type supervisor struct {
	tell     func(state string) // sd_notify(3); nil: nobody listens
	watchdog time.Duration      // silence for this long means that the daemon hangs; 0: nobody minds
}

// systemd is the supervisor of a service of Type=notify; of a process that it
// did not start, it is nobody.
func systemd() supervisor {
	watchdog, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		watchdog = 0 // no number, no deadline
	}
	return supervisor{
		tell:     func(state string) { sd.SdNotify(false, state) }, // a lost notice is systemd's loss: mail goes on
		watchdog: watchdog,
	}
}

func (s supervisor) notify(state string) {
	if s.tell != nil {
		s.tell(state)
	}
}

// ready tells that the last listener is open.
func (s supervisor) ready() { s.notify(sd.SdNotifyReady + "\nSTATUS=serving") }

// reload runs a reload between RELOADING and READY, and leaves its outcome
// where `systemctl status` shows it.
func (s supervisor) reload(swap func() error) error {
	s.notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
	err := swap()
	status := "serving"
	if err != nil {
		status = "serving; the old configuration stays in force: " + err.Error()
	}
	s.notify(sd.SdNotifyReady + "\nSTATUS=" + oneLine(status))
	return err
}

// oneLine keeps a text from being read as further assignments.
func oneLine(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c == 0x7f {
			b[i] = ' '
		}
	}
	return string(b)
}

// watch tells the supervisor that the daemon lives for as long as alive says
// so, and when it begins to stop. A question that does not come back is waited
// for, not asked again.
func (s supervisor) watch(ctx context.Context, alive func() bool) {
	defer s.notify(sd.SdNotifyStopping)
	if s.watchdog <= 0 {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(s.watchdog / 4) // so that two answers in a row may be late
	defer tick.Stop()
	answer := make(chan bool, 1)
	for asked := false; ; {
		if !asked {
			asked = true
			go func() { answer <- alive() }()
		}
		select {
		case <-ctx.Done():
			return
		case lives := <-answer:
			if lives {
				s.notify(sd.SdNotifyWatchdog)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			asked = false
		}
	}
}

// alive goes the way of a login and of a recipient, through the ledger's lock,
// the store, the gate and the milter's loops: with one of them stuck, a timer
// alone would tick on. The gate is asked what no configuration answers otherwise,
// and answers without the store.
func (d *daemon) alive(ctx context.Context) bool {
	nobody := netip.IPv6Unspecified()
	d.ledger.Revoked(nobody)
	_, _ = d.store.Get(relay.KeyOf(nobody, d.gate.Rules().IPv6Prefix))
	e := d.gate.Explain(ctx, &relay.Query{Door: "control", Client: nobody, Rcpt: "postmaster"})
	return e.Decision == relay.Decision{Verdict: relay.Pass, Reason: relay.ReasonLocal} && d.milter.Alive(ctx)
}
