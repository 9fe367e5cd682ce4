// Package domains knows which domains are the site's own: those written in the
// configuration, those listed in files, and those the MTA's own configuration
// names. It hands out immutable snapshots. It never forgets a domain because
// something could not be read, and one that was taken away stays "cannot tell"
// for ten minutes; it never guesses one. It reads files and runs the MTA's own
// programs to ask it; it changes nothing.
package domains

// File is a file of domains, one a line.
type File struct {
	Path       string
	Subdomains bool // each name stands for its subdomains as well
}

// From says where the MTA's own list of domains is taken from.
type From string

// The words of local_domains_from.
const (
	Auto         From = "auto" // whichever MTA has a configuration on this host, else none
	FromPostfix  From = "postfix"
	FromSendmail From = "sendmail"
	None         From = "none"
)
