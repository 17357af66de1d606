// Package e2e holds the tests in which all services take part, against the
// embedded stack. They read like the README: a file is dropped into the folder,
// a campaign is started with the command, and the books are checked.
package e2e
