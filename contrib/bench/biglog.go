package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// wantedLines are those of one ttl at the end of a log.
const wantedLines = 200_000

// biglog measures a start without state beside a log that is mostly older than
// one ttl, until the log has been read, beside the same with nothing but the
// lines that are not.
func (b *bench) biglog() error {
	big, err := b.room("biglog")
	if err != nil {
		return err
	}
	small, err := b.room("endlog")
	if err != nil {
		return err
	}
	defer os.Remove(big + "/mail.log") // others want the room
	size, err := writeOldLog(big+"/mail.log", b.log)
	if err != nil {
		return err
	}
	progress("%d MiB of old lines written", size>>20)
	logins := 0
	for _, dir := range []string{big, small} {
		if logins, err = appendWanted(dir + "/mail.log"); err != nil {
			return err
		}
	}
	var ratios, spent, reads, ours, theirs, mine, yard []float64
	for round := range b.rounds {
		order := []string{big, small}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		cost := map[string]reading{}
		for _, dir := range order {
			if cost[dir], err = b.startWithout(dir, logins); err != nil {
				return fmt.Errorf("%s: %w", filepath.Base(dir), err)
			}
		}
		o, t := cost[big], cost[small]
		ours, theirs, ratios = append(ours, o.took), append(theirs, t.took), append(ratios, o.took/t.took)
		mine, yard, spent = append(mine, o.spent), append(yard, t.spent), append(spent, o.spent/t.spent)
		reads = append(reads, float64(o.read-t.read)/1e6)
	}
	b.report.add("start without state beside a large log, until it is read, against its last ttl alone", limit{}, "%.2f", median(ratios),
		"%.2f : %.2f s (%.2f to %.2f); %d MiB, of which %d lines with %d logins count", median(ours), median(theirs),
		slices.Min(ratios), slices.Max(ratios), size>>20, wantedLines, logins)
	b.report.add("the same, processor time", limit{}, "%.2f", median(spent), "%.2f : %.2f s (%.2f to %.2f)", median(mine), median(yard),
		slices.Min(spent), slices.Max(spent))
	b.report.add("read for that beyond what the last ttl takes", limit{}, "%.2f MB", median(reads), "by the kernel's count of bytes read")
	return nil
}

// reading is what a start had cost when the log was read.
type reading struct {
	took, spent float64 // seconds, and seconds of processor time
	read        int     // bytes, of everything
}

// startWithout starts the daemon with no state and waits until it has read its
// log.
func (b *bench) startWithout(dir string, logins int) (r reading, err error) {
	if err := os.RemoveAll(dir + "/state"); err != nil {
		return r, err
	}
	began := time.Now()
	d, err := b.serve(dir, 0)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	err = b.until("the log to be read", b.patience(), func() (bool, error) {
		s, err := d.status()
		return err == nil && s.Sources[0].State == "up" && s.Grants >= logins, err
	})
	r.took = time.Since(began).Seconds()
	a, accountErr := d.account()
	spent, spentErr := d.processor()
	r.read, r.spent = a.read, spent.Seconds()
	return r, errors.Join(err, accountErr, spentErr)
}

// writeOldLog writes so many MiB of a log that ended a day ago. Only the time
// in a line differs from one block of it to the next, as this is quick.
func writeOldLog(name string, mebibytes int) (size int, err error) {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	const block = 4 << 20
	at := time.Now().UTC().Add(-7 * 24 * time.Hour) // whose stamps are of one length
	var text []byte
	var stamps []int // where they are
	for n := 0; len(text) < block; n++ {
		stamps = append(stamps, len(text))
		if n%loginEvery == 0 {
			text = loginLine(text, n, at)
		} else {
			text = otherLine(text, n, at)
		}
	}
	blocks := max(1, mebibytes<<20/len(text))
	for i := range blocks {
		now := at.Add(6 * 24 * time.Hour / time.Duration(blocks) * time.Duration(i))
		new := now.AppendFormat(nil, stamp)
		for _, place := range stamps {
			copy(text[place:], new)
		}
		n, err := f.Write(text)
		if size += n; err != nil {
			return size, errors.Join(err, f.Close())
		}
	}
	// It is on the disk and nowhere else, as an old log is.
	err = f.Sync()
	return size, errors.Join(err, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

// appendWanted writes the lines of the last hours, and gives how many of them
// are logins.
func appendWanted(name string) (logins int, err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return 0, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	const hours = 8 * time.Hour // of a ttl of 12
	began := time.Now().Add(-hours)
	var line []byte
	for n := range wantedLines {
		at := began.Add(hours / wantedLines * time.Duration(n))
		if n%loginEvery == 0 {
			line = loginLine(line[:0], n, at)
			logins++
		} else {
			line = otherLine(line[:0], n, at)
		}
		_, _ = w.Write(line) // Flush tells
	}
	return logins, errors.Join(w.Flush(), f.Close())
}
