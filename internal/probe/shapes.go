package probe

import "strings"

// Shapes are recipients that some MTA routes by their local part, or that name
// two domains. L stands for a domain of the site's own, V for another one, R for
// a domain of another site's. Each is the whole argument of RCPT TO.
var Shapes = []string{
	`<x@R>`, `<x@R.>`, `<x@R >`, `< x@R>`, `x@R`, `<X@r>`, `<(c)x@R>`, `<x(c)@R>`, `"Alice alice@L" <x@R>`,
	`<x%R@L>`, `<x%R>`, `<x%R%L@L>`, `<"x%R"@L>`, `<"x%R">`, `<x%R%L>`, `<x%R@>`, `<x%R@[127.0.0.1]>`, `<x%R@localhost>`, `<x%R@mx1.L>`,
	`<"x@R"@L>`, `"x@R"@L`, `<"x@R">`, `<x@R@L>`, `<x@R@>`, `<x@R@localhost>`, `<x\@R@L>`, "<x@R\t@L>", `<x@R @L>`, `<"x@R"@[127.0.0.1]>`,
	`<@L:x@R>`, `<@L:"x@R"@L>`, `<@L:x%R@L>`, `<@R:x@R>`, `<@L,@R:x@R>`, `<@L:@R:x>`, `<@R:alice@L>`, `<@R:x>`,
	`<R!x>`, `<R!x@L>`, `<"R!x"@L>`, `<L!R!x>`, `<L!x%R>`, `<R!x%L@L>`, `<L!"x@R">`, `<R!x@localhost>`,
	`<x@R>,<alice@L>`, `<alice@L>,<x@R>`, `<x@R;alice@L>`, `<alice@L;x@R>`, `<x@R,alice@L>`, `<x@R|alice@L>`,
	`<x=R@L>`, `<x/R@L>`, `<x@[R]>`, `<x@R@L@R>`, `<x+@R>`, `<x@R:25>`, `<x@R#L>`, `<x@R/L>`,
	`<alice@L@R>`, `<"alice@L"@R>`, `<alice%L@R>`, `<x@L.R>`, `<x@xL.R>`,
	`<x%R@V>`, `<"x@R"@V>`, `<x@R@V>`, `<R!x@V>`, `<alice%R@V>`, `<"x%R"@V>`, `<@V:x@R>`, `<V!R!x>`,
}

// names are the shapes that a closed MTA takes as a mailbox's odd name, where
// it takes any name at L.
var names = []string{
	`<x=R@L>`, `<x/R@L>`, // nobody routes by these
	`<x\@R@L>`, `<@R:x>`, `<@L:@R:x>`, // sendmail: users of that name, or x
}

// ofAlice are the shapes in which a closed MTA finds alice@L alone.
var ofAlice = []string{`<@R:alice@L>`, `<alice@L>,<x@R>`, `<x@R>,<alice@L>`}

// Spell writes a shape out.
func Spell(shape, local, remote, virtual string) string {
	upper := strings.ToUpper(remote[:strings.LastIndexByte(remote, '.')+1]) + remote[strings.LastIndexByte(remote, '.')+1:]
	return strings.NewReplacer("L", local, "R", remote, "V", virtual, "r>", upper+">").Replace(shape)
}
