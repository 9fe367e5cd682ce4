package main

import (
	"testing"
	"time"
)

// Long work sleeps for most of its time, and short work hardly at all.
func TestPaceRestsForMostOfTheTime(t *testing.T) {
	p := leisurely()
	began := time.Now()
	worked := time.Duration(0)
	for range 50 {
		at := time.Now()
		for time.Since(at) < p.work {
		}
		worked += time.Since(at)
		p.rest()
	}
	if took := time.Since(began); took < worked+50*p.sleep {
		t.Errorf("50 pieces of work took %v, %v of it working", took, worked)
	}
	p.began = time.Now().Add(time.Hour) // no work done yet
	before := *p
	if p.rest(); *p != before {
		t.Error("rested without having worked")
	}
}
