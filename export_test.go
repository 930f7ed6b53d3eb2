package realtime

// Kick does what the sweeper does to clients that have been idle, to all.
func Kick(h *Hub) {
	for _, c := range h.all() {
		c.wire.kick()
	}
}
