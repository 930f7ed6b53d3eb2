package realtime

// Kick does to all clients what the sweeper does to those that have been idle.
func Kick(h *Hub) {
	for _, c := range h.all() {
		if !c.wire.parked.Load() {
			c.wire.kick()
		}
	}
}
