package milter

import "sync"

// What a connection needs only while it has something to say is borrowed by
// it: of thousands that wait, none holds any.
var (
	buffers = sync.Pool{New: func() any { return new([firstBuffer]byte) }}
	sets    = sync.Pool{New: func() any { return new(macroSet) }}
)

func borrow() []byte    { return buffers.Get().(*[firstBuffer]byte)[:] }
func giveBack(b []byte) { buffers.Put((*[firstBuffer]byte)(b)) }

func borrowMacros() *macroSet { return sets.Get().(*macroSet) }

func (m *macroSet) giveBack() {
	m.clear()
	sets.Put(m)
}
