package realtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/coder/websocket"
)

// A page joins topics by itself: those in its URL, and over an open WebSocket of
// the Subprotocol those that a control message names. OnSubscribe decides.
//
// A topic that the page doesn't have yet begins as for a new client. The page is
// told when it has all of it, up to then. It comes back with its last id, which
// stands for the topics that it has been told about. It names the others as new.

const (
	maxAskedTopics   = 100 // in a URL, and those that a client has by asking
	maxControlTopics = 1000
)

// controlPrefix begins a text message that is for the hub itself.
const controlPrefix = `{"realtime":`

// control does what a control message asks for. The messages behind it wait.
func (c *Client) control(data []byte) {
	var m struct {
		Realtime struct{ Unsubscribe, Subscribe []string }
	}
	err := json.Unmarshal(data, &m)
	ask := &m.Realtime
	if n := len(ask.Unsubscribe) + len(ask.Subscribe); err == nil && n > maxControlTopics {
		err = fmt.Errorf("%d topics in one control message, at most %d are allowed", n, maxControlTopics)
	}
	if err != nil {
		status := websocket.CloseError{Code: websocket.StatusPolicyViolation, Reason: "not a message of " + Subprotocol}
		c.close(status, fmt.Errorf("%w: %w", errProtocol, err))
		return
	}
	if len(ask.Unsubscribe) > 0 {
		c.Unsubscribe(c.haveAsked(ask.Unsubscribe)...)
		gone := encodeJSON(map[string][]string{"unsubscribed": ask.Unsubscribe})
		c.home.inbox.put(entry{do: func(*shard) { c.out.reply(gone) }}) // behind the last events
	}
	if len(ask.Subscribe) > 0 {
		c.begin(distinct(ask.Subscribe))
	}
}

// begin subscribes the client to topics as a new client, and tells it when it has
// them. Those that it has by asking begin again.
func (c *Client) begin(topics []string) {
	c.Unsubscribe(c.haveAsked(topics)...)
	c.asNew(topics)
	refused, err := c.join(c.lacks(topics))
	if err != nil {
		return // it is closing
	}
	c.learnPosition()
	c.reply(topics, refused)
}

// learnPosition tells the client the newest position. With a Broker the position
// that it got with its topics may be from before their events arrive, so it
// couldn't resume there.
func (c *Client) learnPosition() {
	c.tmu.Lock()
	defer c.tmu.Unlock()
	if c.hub.shared.history.keeps() {
		c.handReplay(nil, &replay{id: c.id, live: true})
	}
}

// asNew makes topics begin as for a new client, whatever id the client has.
func (c *Client) asNew(topics []string) {
	c.tmu.Lock()
	defer c.tmu.Unlock()
	c.late.leave(topics)
}

// A topicRefusal says why a client doesn't get a topic.
type topicRefusal struct {
	topic string
	why   *refusal
}

// join subscribes the client to those of topics that it may have. It returns why
// it doesn't get the others.
func (c *Client) join(topics []string) (refused []topicRefusal, err error) {
	var joins []string
	room := maxAskedTopics - len(c.haveAsked(c.Topics()))
	for _, topic := range topics {
		err := checkTopic(topic)
		switch {
		case err != nil:
			err = openly(http.StatusBadRequest, err)
		case len(joins) >= room:
			err = Refuse(http.StatusBadRequest, fmt.Sprintf("more than %d topics", maxAskedTopics))
		default:
			err = c.mayJoin(topic)
		}
		if err == nil {
			joins = append(joins, topic)
		} else {
			why := c.refusalBy("topic refused by OnSubscribe", err, "topic", clip(topic), "client", c.ID())
			refused = append(refused, topicRefusal{topic, why})
		}
	}
	if err := c.Subscribe(joins...); err != nil && err != ErrBrokerUnavailable { // which is temporary
		return nil, err
	}
	c.tmu.Lock()
	defer c.tmu.Unlock()
	for _, topic := range joins {
		if i, has := c.findTopic(topic); has {
			c.topics[i].asked = true
		}
	}
	return refused, nil
}

// mayJoin returns an error if the client may not join a topic by itself.
func (c *Client) mayJoin(topic string) error {
	if ask := c.hub.shared.onSubscribe; ask != nil {
		return ask(c, topic)
	}
	if c.screened {
		return errNotInvited
	}
	return nil
}

// errNotInvited refuses a topic that OnConnect hasn't subscribed.
var errNotInvited = &refusal{status: http.StatusForbidden, reason: http.StatusText(http.StatusForbidden)}

// haveAsked returns those of topics that the client has because it asked for them.
func (c *Client) haveAsked(topics []string) []string {
	return c.filter(topics, func(sub *subscription) bool { return sub != nil && sub.asked })
}

// lacks returns those of topics that the client doesn't have.
func (c *Client) lacks(topics []string) []string {
	return c.filter(topics, func(sub *subscription) bool { return sub == nil })
}

// filter returns the topics whose subscription is wanted; nil stands for none.
func (c *Client) filter(topics []string, wanted func(*subscription) bool) (some []string) {
	c.tmu.Lock()
	defer c.tmu.Unlock()
	for _, topic := range topics {
		var sub *subscription
		if i, has := c.findTopic(topic); has {
			sub = c.topics[i]
		}
		if wanted(sub) {
			some = append(some, topic)
		}
	}
	return some
}

// reply tells the client why it doesn't get some topics, and behind the replay
// which of the others it has.
func (c *Client) reply(topics []string, refused []topicRefusal) {
	for _, r := range refused {
		c.out.reply(encodeJSON(struct {
			Topic   string   `json:"topic"`
			Refused farewell `json:"refused"`
		}{r.topic, r.why.goodbye().farewell()}))
	}
	if had := c.filter(topics, func(sub *subscription) bool { return sub != nil }); len(had) > 0 {
		c.out.reply(encodeJSON(map[string][]string{"subscribed": had}))
	}
}

// An asking is what the URL of a request asks for.
type asking struct {
	topics    []string
	fresh     []string // of them, those that the page doesn't have yet
	envelopes bool     // the client is of the Subprotocol, so that it can be told about a topic
}

// asks returns what the client's URL asks for. Topics that are new to the page
// begin as for a new client, those that OnConnect subscribes as well.
func (c *Client) asks(r *http.Request) (a asking, err error) {
	if r.URL.RawQuery == "" {
		return a, nil
	}
	query := r.URL.Query()
	a.topics, a.fresh = query["topic"], query["new"]
	switch {
	case len(a.fresh) > maxAskedTopics:
		return a, tooManyAsked(len(a.fresh))
	case len(a.fresh) > 0:
		a.fresh = distinct(a.fresh)
		c.late = new(lateStart)
		c.asNew(a.fresh)
	}
	if c.transport.kind() == WebSocket {
		a.envelopes = offersSubprotocol(r.Header["Sec-Websocket-Protocol"])
	} else {
		a.envelopes = query.Get("protocol") == Subprotocol
	}
	return a, nil
}

func tooManyAsked(n int) error {
	return openly(http.StatusBadRequest, fmt.Errorf("the request asks for %d topics, at most %d are allowed", n, maxAskedTopics))
}

// joinAsked subscribes the client to what its URL asks for, behind OnConnect. It
// returns refusals of topics that the client can be told about. One that can't is
// refused as a whole.
func (c *Client) joinAsked(a asking) (refused []topicRefusal, err error) {
	defer c.hub.catch("OnSubscribe", c, func(panicked error) { err = bluntly(http.StatusInternalServerError, panicked) })
	if c.screened && c.hub.shared.onSubscribe == nil {
		for _, topic := range c.lacks(a.fresh) {
			refused = append(refused, topicRefusal{topic, errNotInvited})
		}
		return refused, nil
	}
	topics := c.lacks(a.topics)
	switch {
	case len(topics) == 0:
		return nil, nil
	case len(topics) > maxAskedTopics:
		return nil, tooManyAsked(len(topics))
	}
	refused, err = c.join(distinct(topics))
	if err == nil && len(refused) > 0 && !a.envelopes {
		return nil, refused[0].why
	}
	return refused, err
}

// refusalBy returns the refusal that a handler's error means. Any error but a
// refusal and ErrBrokerUnavailable is logged as what, and tells a stranger nothing.
func (c *Client) refusalBy(what string, err error, args ...any) *refusal {
	if errors.Is(err, ErrBrokerUnavailable) {
		return notNow(err)
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	c.hub.shared.log.warn(logRefused, what, append(args, "err", err)...)
	return bluntly(http.StatusForbidden, err)
}
