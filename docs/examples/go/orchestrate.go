// An orchestrator for Volt Unified Networking.
//
// Usage: orchestrate NATS_URL HOST NETNS     such as nats://127.0.0.1:4222 h1 /run/netns/box
package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/vmihailenco/msgpack/v5"
)

const (
	own      = "volt.net.v1"
	stream   = "VOLT_NET_EVENTS"
	consumer = "example-go"
)

// What this program needs of the messages; other keys are passed over.

type attachment struct {
	ID         string            `msgpack:"id"`
	Generation uint64            `msgpack:"generation"`
	Device     *device           `msgpack:"device"`
	Addresses  []address         `msgpack:"addresses"`
	Labels     map[string]string `msgpack:"labels"`
}

type device struct {
	Name string `msgpack:"name"`
}

type address struct {
	Address string `msgpack:"address"`
}

type attachRequest struct {
	ID       string `msgpack:"id"`
	Workload string `msgpack:"workload"`
	Kind     string `msgpack:"kind"`
	Network  string `msgpack:"network"`
	Netns    string `msgpack:"netns,omitempty"`
}

// voltError is the key "error" of an answer or event. Branch on Code, or on Retryable.
type voltError struct {
	Code         string  `msgpack:"code"`
	Message      string  `msgpack:"message"`
	Retryable    bool    `msgpack:"retryable"`
	RetryAfterMs float64 `msgpack:"retryAfterMs"`
}

func (e *voltError) Error() string { return e.Code + ": " + e.Message }

type event struct {
	Kind      string            `msgpack:"-"`
	ID        string            `msgpack:"id"`
	RequestID string            `msgpack:"requestId"`
	Reason    string            `msgpack:"reason"`
	Labels    map[string]string `msgpack:"labels"`
	Error     *voltError        `msgpack:"error"`
}

func ask(connection *nats.Conn, subject string, request, answer any) error {
	payload, err := msgpack.Marshal(request)
	if err != nil {
		return err
	}
	message, err := connection.Request(subject, payload, 10*time.Second)
	if errors.Is(err, nats.ErrNoResponders) {
		return &voltError{Code: "AGENT_UNAVAILABLE", Message: subject, Retryable: true}
	}
	if errors.Is(err, nats.ErrTimeout) {
		return &voltError{Code: "DEADLINE_EXCEEDED", Message: subject, Retryable: true}
	}
	if err != nil {
		return err
	}
	var refused struct {
		Error *voltError `msgpack:"error"`
	}
	if err := msgpack.Unmarshal(message.Data, &refused); err != nil {
		return err
	}
	if refused.Error != nil {
		return refused.Error
	}
	return msgpack.Unmarshal(message.Data, answer)
}

// insist asks again where that may help, later each time. A repeat is harmless.
func insist(connection *nats.Conn, subject string, request, answer any) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := ask(connection, subject, request, answer)
		var refused *voltError
		if err == nil {
			return
		}
		if !errors.As(err, &refused) || !refused.Retryable {
			log.Fatal(err)
		}
		fmt.Println("retry", refused.Code)
		time.Sleep(max(wait, time.Duration(refused.RetryAfterMs)*time.Millisecond))
	}
}

func min(a, b time.Duration) time.Duration {
	if a < b {
		return a
	}
	return b
}

func max(a, b time.Duration) time.Duration {
	if a > b {
		return a
	}
	return b
}

// follow hands on every event since the consumer was made, also those of when nobody was here, until handle says that
// it has what it waited for. An event is acknowledged once it was handled.
func follow(events *nats.Subscription, handle func(event) bool) {
	for {
		messages, err := events.Fetch(1, nats.MaxWait(5*time.Second))
		if errors.Is(err, nats.ErrTimeout) {
			continue
		}
		check(err)
		message := messages[0]
		metadata, err := message.Metadata()
		check(err)
		var body event
		check(msgpack.Unmarshal(message.Data, &body))
		body.Kind = strings.TrimPrefix(message.Header.Get("ce-type"), "volt.net.")
		fmt.Println("event", metadata.Sequence.Stream, body.Kind, message.Header.Get("ce-subject"))
		done := handle(body)
		check(message.AckSync())
		if done {
			return
		}
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: orchestrate NATS_URL HOST NETNS")
	}
	url, host, netns := os.Args[1], os.Args[2], os.Args[3]
	connection, err := nats.Connect(url, nats.MaxReconnects(-1))
	check(err)
	jetStream, err := connection.JetStream()
	check(err)
	events, err := jetStream.PullSubscribe(own+".event.>", consumer, nats.BindStream(stream), nats.DeliverNew())
	check(err)

	var put struct {
		Network struct {
			Network string `msgpack:"network"`
		} `msgpack:"network"`
		Revision int `msgpack:"revision"`
	}
	network := map[string]string{"network": "volt0", "subnet": "10.42.0.0/24", "gateway": "10.42.0.1"}
	insist(connection, own+".network.put", network, &put)
	fmt.Println("network", put.Network.Network, "revision", put.Revision)

	for _, request := range []attachRequest{
		{ID: "web", Workload: "vm-web", Kind: "vm", Network: "volt0"},
		{ID: "box", Workload: "container-box", Kind: "container", Network: "volt0", Netns: netns},
	} {
		var answer struct {
			Attachment attachment `msgpack:"attachment"`
		}
		insist(connection, own+".host."+host+".attach", request, &answer)
		made := answer.Attachment
		fmt.Println("attached", made.ID, made.Device.Name, made.Addresses[0].Address)
	}

	// A job is stored, and done when the host's agent is there; its outcome is an event.
	requestID := nats.NewInbox()
	job := nats.NewMsg(own + ".job." + host + ".update")
	job.Header.Set("Nats-Msg-Id", host+".update."+requestID)
	job.Data, err = msgpack.Marshal(map[string]any{
		"id": "web", "labels": map[string]string{"tier": "front"}, "requestId": requestID,
	})
	check(err)
	_, err = jetStream.PublishMsg(job)
	check(err)
	follow(events, func(one event) bool {
		if one.RequestID != requestID {
			return false
		}
		if one.Error != nil {
			fmt.Println("job", one.Kind, one.Error.Code)
		} else {
			fmt.Println("job", one.Kind, one.Labels["tier"])
		}
		return true
	})

	going := map[string]bool{"box": true, "web": true}
	for id := range going {
		var answer struct{}
		insist(connection, own+".host."+host+".detach", map[string]string{"id": id}, &answer)
	}
	follow(events, func(one event) bool {
		if one.Kind == "detached" && going[one.ID] {
			fmt.Println("detached", one.ID, one.Reason)
			delete(going, one.ID)
		}
		return len(going) == 0
	})
	check(connection.Drain())
}
