//go:build unix && !linux

package realtime_test

func childUnplugged() int { return 2 }
func childStarved() int   { return 2 }
