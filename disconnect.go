package realtime

import (
	"context"
	"fmt"

	"github.com/coder/websocket"
)

// Disconnect closes every client that has topic, on all nodes, as
// [Client.Close] does. If OnConnect gives each client a topic of its user, it
// ends all connections of a user who logs out. A page may reconnect, unless
// OnConnect then refuses it.
//
// It has a place among what is published: a client gets what was published to
// it before, and nothing that is published afterwards. Only the rest of a replay
// is left out. A client has a topic from the return of Subscribe on, also in
// OnConnect.
//
// It blocks until the hub accepts it, with a [Broker] until the engine has it.
// The errors are those of [Hub.Publish], and one for a code that Close refuses. A
// reason is cut and repaired as by [Client.Close]. After [ErrBrokerUnavailable]
// this node's clients are closed, those of others may not be. A node that the
// engine can't reach doesn't learn of it. With a [HistoryBroker] and a History it
// does when it is back. It then also closes clients that have joined it in the
// meantime, unless they came with an id from behind the disconnect.
func (h *Hub) Disconnect(ctx context.Context, topic string, code websocket.StatusCode, reason string) error {
	if err := checkTopic(topic); err != nil {
		return err
	}
	status, err := checkClose(code, reason)
	if err != nil {
		return err
	}
	return h.takeEvent(ctx, newDisconnect(topic, status))
}

// newDisconnect returns the notice that closes a topic's clients. It has an
// event's way and its place in the order, up to the shards.
func newDisconnect(topic string, status websocket.CloseError) *event {
	payload := closeFrame(status.Code, status.Reason).b[2:]
	return &event{Event: Event{Data: payload, Binary: true}, topic: topic, notice: disconnectNotice}
}

// disconnect closes the clients of ev's topic. It waits for none of them: each
// leaves the shard by an entry of its own. An old notice is one from before the
// log was current. Clients whose Subscribe still waits for that don't have the
// topic yet.
func (s *shard) disconnect(ev *event, old bool) {
	t := s.topics[ev.topic]
	if t == nil {
		return
	}
	cause := &closedError{parseClose(ev.Data), ErrClientClosed}
	for _, sub := range t.subs {
		if sub.early || !old {
			sub.client.close(cause.status, cause)
		}
	}
}

// checkClose returns what a close frame can carry of code and reason: of a long
// reason the beginning.
func checkClose(code websocket.StatusCode, reason string) (websocket.CloseError, error) {
	if !validCode(code) {
		return websocket.CloseError{}, fmt.Errorf("realtime: close code %d can't be sent: use 1000, 1001, 1003, 1007 to 1014, or 3000 to 4999", code)
	}
	return websocket.CloseError{Code: code, Reason: fitReason(reason)}, nil
}
