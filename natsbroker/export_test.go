package natsbroker

// Remotes returns the number of servers that an embedded one has routes to.
func (b *Broker) Remotes() int { return b.host.running().NumRemotes() }
