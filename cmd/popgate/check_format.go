package main

import (
	"fmt"
	"io"
	"os"
	"slices"

	"popgate/internal/config"
	"popgate/watcher"
	"popgate/watcher/format"
)

// logEnd is how much of a log's end is read to see whether its format is right.
const logEnd = 1 << 20

// formatFits reads the end of a log as the source does, and where that finds no
// login, in every other format: a log that is never understood looks like one
// of a quiet night.
func (k *checker) formatFits(what string, s *config.Source, formats []config.Format) {
	p := plan{config: *s}
	if i := slices.IndexFunc(formats, func(f config.Format) bool { return f.Name == s.Format }); i >= 0 {
		p.custom = &formats[i]
	}
	parser, err := p.newParser()
	if err != nil {
		k.fail(what, err.Error())
		return
	}
	f, err := os.Open(s.Path)
	if err != nil {
		return // said already
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > logEnd {
		f.Seek(-logEnd, io.SeekEnd)
	}
	lines, unparsed := 0, 0
	others := newTrial(s.Format)
	var m format.Message
	for line, err := range watcher.Lines(f) {
		if err != nil || !format.Split(line, &m) {
			continue
		}
		switch _, result := parser.Parse(&m); result {
		case format.Login:
			return
		case format.Unparsed:
			unparsed++
		}
		lines++
		if others.active() {
			others.line(&m)
		}
	}
	best, most := "", 0
	for name, n := range others.logins {
		if n > most || n == most && name < best {
			best, most = name, n
		}
	}
	switch {
	case most > 0:
		k.warn(what, fmt.Sprintf("its last %d lines hold no login in the format %s, but %d in %s; write format: %s if that is the server", lines, s.Format, most, best, best))
	case unparsed > 0:
		k.warn(what, fmt.Sprintf("its last %d lines hold no login, but %d that look like one and match nothing: `popgate test-log --unparsed %s` prints them; a server whose log format was changed needs a format of your own (docs/formats.md)", lines, unparsed, s.Path))
	}
}
