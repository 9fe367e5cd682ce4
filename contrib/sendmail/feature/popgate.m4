divert(-1)
dnl #
dnl # popgate by milter, for sendmail.mc:
dnl #
dnl #	FEATURE(`popgate')dnl
dnl #	FEATURE(`popgate', `S=local:/run/popgate/milter.sock, T=C:10s;S:10s;R:10s;E:30s')dnl
dnl #
dnl # This file goes into the directory feature of the sendmail configuration
dnl # files, /usr/share/sendmail/cf/feature on Debian. Let nothing in the same
dnl # sendmail.mc say promiscuous_relay.
dnl #
dnl # The line makes sendmail ask the filter and opens the relay rule behind it.
dnl # The rule is opened last of all, and only if every message is still seen by
dnl # the filter: without the line, with another value of confINPUT_MAIL_FILTERS,
dnl # or where a DAEMON_OPTIONS line names filters of its own, sendmail refuses
dnl # what it would refuse without popgate. F=T, by which mail waits while popgate
dnl # is down, is added here and can not be changed.
dnl #
divert(0)dnl
VERSIONID(`popgate')
divert(-1)

ifelse(defn(`_ARG_'), `',
	`define(`_POPGATE_EQUATES_', `S=local:/run/popgate/milter.sock, T=C:10s;S:10s;R:10s;E:30s')',
	`define(`_POPGATE_EQUATES_', defn(`_ARG_'))')

define(`_POPGATE_OPEN_', `ifelse(
	regexp(defn(`confINPUT_MAIL_FILTERS'), `\(^\|,\) *popgate *\(,\|$\)'), `-1',
	`errprint(`*** ERROR: FEATURE(popgate): confINPUT_MAIL_FILTERS has lost popgate, the relay rule stays shut
')',
	regexp(defn(`_DPO_'), `[=,] *[Ii][A-Za-z]* *='), `-1',
	`define(`_PROMISCUOUS_RELAY_', `1')',
	`errprint(`*** ERROR: FEATURE(popgate): a DAEMON_OPTIONS line has an InputMailFilters of its own, the relay rule stays shut
')')')

ifelse(regexp(defn(`_POPGATE_EQUATES_'), `\(^\|,\) *[Ff]'), `-1',
	`INPUT_MAIL_FILTER(`popgate', defn(`_POPGATE_EQUATES_')`, F=T')
	m4wrap(`_POPGATE_OPEN_()')',
	`errprint(`*** ERROR: FEATURE(popgate): F= is not to be given, neither filter nor relay rule is written
')')
