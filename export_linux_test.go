package realtime

// PlacesOf counts a parker's places.
type PlacesOf struct {
	All, Free int
	Taken     int   // which have a client
	Before    int32 // former tenants of them all
}

// Places returns those of h's parker, which it must have.
func Places(h *Hub) (n PlacesOf) {
	p := h.parking()
	p.mu.Lock()
	defer p.mu.Unlock()
	n.All, n.Free = len(p.slots), len(p.free)
	for _, s := range p.slots {
		if s.client != nil {
			n.Taken++
		}
		n.Before += s.generation
	}
	return n
}
