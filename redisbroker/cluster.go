package redisbroker

import (
	"context"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// slots is the number of slots of a cluster.
const slots = 16384

// followCluster gives each master of the cluster a link, until Close. It asks for
// the masters again when a command was refused or a connection lost, and not
// otherwise.
func (b *Broker) followCluster() {
	for {
		var again <-chan time.Time
		if owners := b.ask(); owners != nil {
			b.place(owners)
		} else {
			b.knows()
			again = time.After(maxBackoff)
		}
		select {
		case <-b.stale:
		case <-again:
		case <-b.ctx.Done():
			return
		}
		select {
		case <-time.After(retryDelay):
		case <-b.ctx.Done():
			return
		}
	}
}

// changed has followCluster ask again, because the cluster may have changed.
func (b *Broker) changed() {
	select {
	case b.stale <- struct{}{}:
	default:
	}
}

// ask returns the address of each slot's master, as the first node that answers
// knows it. It returns nil if no node answers.
func (b *Broker) ask() []string {
	for addr, node := range b.client.Nodes() {
		ctx, cancel := context.WithTimeout(b.ctx, callTimeout)
		ranges, err := node.Do(ctx, node.B().ClusterSlots().Build()).ToArray()
		cancel()
		if err != nil {
			continue
		}
		if owners := parseSlots(ranges, addr); owners != nil {
			return owners
		}
	}
	return nil
}

// parseSlots returns the address of each slot's master from an answer to CLUSTER
// SLOTS: arrays of the first slot, the last slot, the master as an array of host
// and port, and then its replicas. asked is the address of the node that has
// answered. The address is empty for a slot without a master.
func parseSlots(ranges []rueidis.RedisMessage, asked string) []string {
	owners := make([]string, slots)
	for _, r := range ranges {
		fields, err := r.ToArray()
		if err != nil || len(fields) < 3 {
			return nil
		}
		first, err1 := fields[0].AsInt64()
		last, err2 := fields[1].AsInt64()
		master, err3 := fields[2].ToArray()
		if err1 != nil || err2 != nil || err3 != nil || len(master) < 2 || first < 0 || last >= slots {
			return nil
		}
		host, _ := master[0].ToString()
		if host == "" { // the node that has answered, which doesn't know its own name
			host, _, _ = net.SplitHostPort(asked)
		}
		port, err := master[1].AsInt64()
		if err != nil {
			return nil
		}
		for slot := first; slot <= last; slot++ {
			owners[slot] = net.JoinHostPort(host, strconv.FormatInt(port, 10))
		}
	}
	if !slices.ContainsFunc(owners, func(addr string) bool { return addr != "" }) {
		return nil
	}
	return owners
}
