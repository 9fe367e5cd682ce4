// Package policy holds the doors that are only asked: Postfix's policy
// delegation and the socket map that sendmail, Postfix and Exim read. Behind
// them the MTA's own relay rule stays shut, and a question is whether to open
// it for this one client. It carries questions to a Judge and answers back, and
// holds no rule of its own.
//
// It promises:
//
//   - An answer that opens (OK) is given for a decision that passes because of
//     the client, and for nothing else. A recipient that passes because it is
//     our own opens nothing: whose it is, the MTA knows better than we can read
//     from its text.
//   - Where it can't be told, the answer is a temporary failure, never "no
//     opinion" or "not found", behind which the MTA would refuse for good. A
//     panic and the end of the daemon are such cases.
//   - Only whole address literals are clients. A name is never one, whatever it
//     looks like: MTAs ask for names too, and the client may own its PTR record.
//   - What follows from an answer ends with it: nothing about one question is
//     carried to the next but how long its client may still wait for a login.
//   - A bad question, a slow peer or a panic costs that one connection, and
//     nothing a peer sends reaches a log.
//
// It does not authenticate the MTA: whoever can open the socket can ask, and is
// believed about who the client is. It can't see what an MTA makes of its
// answers either. Two traps that no answer can mend:
//
//   - sendmail's FEATURE(drac) takes every answer but "not found" for a
//     permission. With -T<TMPF> in its arguments a temporary failure is such
//     an answer, and with the daemon down it is an open relay.
//   - Postfix's check_reverse_client_hostname_access and suffix matching of
//     client names ask for what stands in a PTR record that nobody has
//     verified, and for its parents: the parent of a.198.51.100.7 reads as an
//     address. Only check_client_access, which asks for names that resolve back
//     to the client, may use the socket map.
package policy
