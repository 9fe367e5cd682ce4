package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"
)

const (
	linesPerSecond = 10_000 // that the mail server logs
	loginEvery     = 10     // one line in so many
	fewest         = 2000   // answers of which the slowest hundredth means something
)

// together measures what a client with a grant notices when everything else
// that the daemon does goes on at once: a busy log with a thousand new grants a
// second, their writing to the disk, scrapes of the metrics and lists of all
// grants, one after the other without a pause. What expires here expires hours
// later, so the sweep finds nothing; it has a measure of its own.
func (b *bench) together() (err error) {
	d, dir, err := b.serveGrants(0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	next := b.grants + 1<<19 // clients that no other measure logs in
	rounds, host, err := calmest(b, someStolen, func() (togetherRound, error) { return b.togetherOnce(d, dir, &next) })
	if err != nil {
		return err
	}
	var ratios, alone, among, keptAlone, keptAmong []float64
	var done work
	for _, r := range rounds {
		if r.keptAmong == 0 {
			continue
		}
		alone, among, ratios = append(alone, r.alone), append(among, r.among), append(ratios, r.among/r.alone)
		keptAlone, keptAmong = append(keptAlone, r.keptAlone), append(keptAmong, r.keptAmong)
		done.add(r.did)
	}
	if ratios == nil {
		return errors.New("the host took processors away all the while; measure again when it is calmer")
	}
	b.report.add("RCPT p99 while all else goes on, against alone", atMost(2.0, 1.3), "%.2f", median(ratios),
		"%.0f : %.0f µs (%.2f to %.2f in %d rounds), of %.0f : %.0f %% of the answers, while the host took nothing; meanwhile %d lines, %d logins, %d lists of all grants to their end, %d scrapes; %s",
		median(among), median(alone), slices.Min(ratios), slices.Max(ratios), len(ratios), 100*median(keptAmong), 100*median(keptAlone), done.lines, done.logins, done.lists, done.scrapes, host)
	b.report.add("written to the disk for a new grant meanwhile", limit{}, "%.0f B", float64(done.written)/float64(done.logins),
		"%.1f MB for %d grants, by the kernel's count, whole pages", float64(done.written)/1e6, done.logins)
	return nil
}

type togetherRound struct {
	alone, among         float64 // 99th percentiles in microseconds
	keptAlone, keptAmong float64 // shares of the answers that they are of; 0: the host left too few
	did                  work
}

func (r togetherRound) String() string {
	if r.keptAmong == 0 {
		return "too few answers while the host took nothing"
	}
	return fmt.Sprintf("%.2f, %.0f : %.0f µs of %.0f : %.0f %% of the answers, %d lists to their end",
		r.among/r.alone, r.among, r.alone, 100*r.keptAmong, 100*r.keptAlone, r.did.lists)
}

// togetherOnce has clients ask alone, then among all else, then alone again.
func (b *bench) togetherOnce(d *daemon, dir string, next *int) (r togetherRound, err error) {
	const alone, among = 4 * time.Second, 25 * time.Second // a million grants are listed in some 22
	quiet, quietAll, err := b.servedCalmly(d, alone)
	if err != nil {
		return r, err
	}
	before, err := d.account()
	if err != nil {
		return r, err
	}
	ctx, stop := context.WithCancel(b.ctx)
	defer stop()
	end := b.keepBusy(ctx, d, dir, next)
	busy, busyAll, err := b.servedCalmly(d, among)
	stop()
	did, endErr := end()
	if err = errors.Join(err, endErr, b.settle(d.process)); err != nil {
		return r, err
	}
	after, err := d.account()
	if err != nil {
		return r, err
	}
	did.written = after.minus(before).written
	again, againAll, err := b.servedCalmly(d, alone)
	if err != nil {
		return r, err
	}
	quiet, quietAll = append(quiet, again...), quietAll+againAll
	slices.Sort(quiet)
	if min(len(quiet), len(busy)) < fewest {
		return togetherRound{did: did}, nil
	}
	return togetherRound{alone: percentile(quiet, 99), among: percentile(busy, 99), did: did,
		keptAlone: float64(len(quiet)) / float64(quietAll), keptAmong: float64(len(busy)) / float64(busyAll)}, nil
}

// work is what the daemon was given to do beside its clients.
type work struct{ lines, logins, lists, scrapes, written int }

func (w *work) add(o work) {
	w.lines += o.lines
	w.logins += o.logins
	w.lists += o.lists
	w.scrapes += o.scrapes
	w.written += o.written
}

// keepBusy gives the daemon work until ctx ends. The function it gives back
// waits for the end, and tells how much it was.
func (b *bench) keepBusy(ctx context.Context, d *daemon, dir string, next *int) func() (work, error) {
	var group sync.WaitGroup
	var w work
	var errs [3]error
	group.Go(func() { w.lines, w.logins, errs[0] = busyLog(ctx, dir+"/mail.log", next) })
	group.Go(func() {
		for ctx.Err() == nil && errs[1] == nil {
			cmd := exec.CommandContext(ctx, b.popgate, "list", "--json", "--socket", d.control)
			if err := cmd.Run(); ctx.Err() == nil { // its output is read by nobody, and written all the same
				w.lists, errs[1] = w.lists+1, err
			}
		}
	})
	group.Go(func() {
		client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", dir+"/metrics.sock")
		}}}
		defer client.CloseIdleConnections()
		for ctx.Err() == nil && errs[2] == nil {
			if err := scrape(ctx, &client); ctx.Err() == nil {
				w.scrapes, errs[2] = w.scrapes+1, err
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	return func() (work, error) { group.Wait(); return w, errors.Join(errs[:]...) }
}

func scrape(ctx context.Context, client *http.Client) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://popgate/metrics", nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("metrics: %s", answer.Status)
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// busyLog writes what a busy mail server logs, at an even pace: a few lines at a
// time, as many processes write them, not as one that gathers them.
func busyLog(ctx context.Context, name string, next *int) (lines, logins int, err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	var text []byte
	for {
		select {
		case <-ctx.Done():
			return lines, logins, nil
		case now := <-tick.C:
			text = text[:0]
			for due := int(linesPerSecond * now.Sub(began).Seconds()); lines < due; {
				if lines++; lines%loginEvery == 0 {
					text = loginLine(text, *next, now)
					logins++
					*next++
					continue
				}
				text = otherLine(text, lines, now)
			}
			if _, err := f.Write(text); err != nil {
				return lines, logins, err
			}
		}
	}
}
