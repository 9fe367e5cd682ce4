package format

// SafeWhenCut says whether no message of the server's reads like a login only
// because its end was cut off on the way. With other formats a failed login
// that is cut behind the right byte can be a perfect good one.
//
// Dovecot's and Cyrus's logins end in a mark that stands in no failed one at
// its place, and tell from their first word what they are.
func SafeWhenCut(p Parser) bool {
	switch p := p.(type) {
	case *dovecot, *cyrus:
		return true
	case *auto:
		return p.chosen != nil && SafeWhenCut(p.chosen)
	}
	return false
}
