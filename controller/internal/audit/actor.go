package audit

import (
	"strings"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

const kindPrefix = "ACTOR_KIND_"

// Actor is who did something: what the actor is, and which one.
type Actor struct {
	Kind stopgapv1.ActorKind
	// Name of a person, or id of an agent or token. The controller and nobody have none.
	Name string
}

// Actors without a name.
var (
	Controller = Actor{Kind: stopgapv1.ActorKind_ACTOR_KIND_CONTROLLER}
	Nobody     = Actor{Kind: stopgapv1.ActorKind_ACTOR_KIND_NOBODY}
)

// Agent is an agent as an actor.
func Agent(id string) Actor { return Actor{Kind: stopgapv1.ActorKind_ACTOR_KIND_AGENT, Name: id} }

// Token is whoever holds an enrolment token, as an actor.
func Token(id string) Actor { return Actor{Kind: stopgapv1.ActorKind_ACTOR_KIND_TOKEN, Name: id} }

// KindOf gives the kind with a name such as "operator"; unspecified when there is none.
func KindOf(name string) stopgapv1.ActorKind {
	return stopgapv1.ActorKind(stopgapv1.ActorKind_value[kindPrefix+strings.ToUpper(name)])
}

// String is the actor for people: "operator ben".
func (a Actor) String() string {
	if a.Kind == stopgapv1.ActorKind_ACTOR_KIND_UNSPECIFIED {
		return a.Name
	}
	return strings.TrimSpace(strings.ToLower(strings.TrimPrefix(a.Kind.String(), kindPrefix)) + " " + a.Name)
}

// ParseActor is the reverse of String: for what is stored as one text.
func ParseActor(s string) Actor {
	kind, name, _ := strings.Cut(s, " ")
	if k := KindOf(kind); k != stopgapv1.ActorKind_ACTOR_KIND_UNSPECIFIED {
		return Actor{Kind: k, Name: name}
	}
	return Actor{Name: s}
}

// ours says whether it is a person or the controller, and not an agent, a token or a stranger.
func (a Actor) ours() bool {
	switch a.Kind {
	case stopgapv1.ActorKind_ACTOR_KIND_CONTROLLER, stopgapv1.ActorKind_ACTOR_KIND_VIEWER, stopgapv1.ActorKind_ACTOR_KIND_OPERATOR,
		stopgapv1.ActorKind_ACTOR_KIND_ADMIN:
		return true
	default:
		return false
	}
}
