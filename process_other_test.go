//go:build !unix

package realtime_test

// childProcess is for tests that stop a process by signals.
func childProcess(string) int { return 2 }
