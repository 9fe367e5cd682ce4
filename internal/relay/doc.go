// Package relay holds popgate's whole policy: given what is known about one
// recipient, may the client relay to it? Nothing here opens a socket, reads a
// clock or knows which door asked. Decide answers Pass only for the reasons it
// lists, an empty Facts never passes, and a refusal needs everything known.
//
// The package also holds the words every other package talks in: Event (what a
// log line told), Grant and Change (what the ledger made of it), Query and
// Decision (what the doors ask and are answered).
package relay
