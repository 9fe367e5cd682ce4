package main

import (
	"errors"
	"testing"
	"time"
)

// works does so many pieces of work at a pace, and gives for how long it worked
// and how long all took.
func works(p *pace, pieces int) (worked, took time.Duration) {
	began := time.Now()
	for range pieces {
		at := time.Now()
		for time.Since(at) < p.work {
		}
		worked += time.Since(at)
		p.rest()
	}
	return worked, time.Since(began)
}

// While MTAs ask, long work sleeps for most of its time.
func TestPaceRestsForMostOfTheTimeAmongMTAs(t *testing.T) {
	answers := uint64(0)
	p := leisurely(func() uint64 { answers++; return answers })
	if worked, took := works(p, 50); took < worked+50*p.among {
		t.Errorf("50 pieces of work took %v, %v of it working", took, worked)
	}
	p.began = time.Now().Add(time.Hour) // no work done yet
	before := p.began
	if p.rest(); p.began != before {
		t.Error("rested without having worked")
	}
}

func TestPaceKnowsWhetherMTAsAsk(t *testing.T) {
	answers := uint64(7)
	p := leisurely(func() uint64 { return answers })
	at := time.Now()
	for _, tt := range []struct {
		after time.Duration
		more  uint64
		want  time.Duration
	}{
		{0, 0, p.among}, // who knows
		{calm, 0, p.among},
		{calm + 1, 0, p.alone},
		{time.Hour, 1, p.among},
		{time.Hour + calm, 0, p.among},
		{time.Hour + calm, 1, p.among},
		{time.Hour + 2*calm, 0, p.among},
		{time.Hour + 2*calm + 1, 0, p.alone},
	} {
		answers += tt.more
		if got := p.sleep(at.Add(tt.after)); got != tt.want {
			t.Errorf("after %v, %d more answers: sleeps %v, want %v", tt.after, tt.more, got, tt.want)
		}
	}
}

func TestPaceEndsWhereSomebodyWaits(t *testing.T) {
	p := brisk()
	p.until = time.Now().Add(-time.Second)
	p.rest()
	if !p.began.IsZero() {
		t.Error("rests after its time")
	}
}

func TestANapIsAsLongAsAskedForEvenWithoutAClock(t *testing.T) {
	none := napper{make: func() (*clock, error) { return nil, errors.New("no descriptor is left") }}
	for name, n := range map[string]*napper{"clock": &listNap, "none": &none} {
		for _, d := range []time.Duration{-1, 0, time.Microsecond, 300 * time.Microsecond, 2 * time.Millisecond} {
			began := time.Now()
			n.take(d)
			if took := time.Since(began); took < d {
				t.Errorf("%s: a nap of %v took %v", name, d, took)
			}
		}
	}
}

func TestANapFindsAClockOnceThereIsOne(t *testing.T) {
	tries := 0
	n := napper{make: func() (*clock, error) {
		if tries++; tries == 1 {
			return nil, errors.New("no descriptor is left")
		}
		return newClock()
	}}
	for range 3 {
		n.take(time.Microsecond)
	}
	if n.clock == nil || tries != 2 {
		t.Errorf("%d tries, clock %v", tries, n.clock)
	}
	if err := n.clock.file.Close(); err != nil {
		t.Error(err)
	}
}
