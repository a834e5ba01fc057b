package httpapi

import (
	"encoding/json"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/parley-im/parley/im"
)

// The words that appear in several operations. Patterns repeat what im.Valid
// says, so that the document tells it; im's word is the last.

// UserPath and the other parts of a path are exported because huma looks into
// embedded structs only then.
type UserPath struct {
	User im.UserID `path:"user" maxLength:"64" pattern:"^[a-z0-9._-]*[a-z0-9_-][a-z0-9._-]*$" patternDescription:"a user id (a-z 0-9 . _ -, not only dots)" doc:"A user id."`
}

// GroupPath names a group.
type GroupPath struct {
	Group im.GroupID `path:"group" maxLength:"64" pattern:"^[a-z0-9._-]*[a-z0-9_-][a-z0-9._-]*$" patternDescription:"a group id (a-z 0-9 . _ -, not only dots)" doc:"A group id."`
}

// MemberPath names a user in a group.
type MemberPath struct {
	GroupPath
	UserPath
}

// DevicePath names one of the caller's devices.
type DevicePath struct {
	Device im.DeviceID `path:"device" maxLength:"64" pattern:"^[A-Za-z0-9._-]+$" patternDescription:"a device id (A-Z a-z 0-9 . _ -)" doc:"A device id: the MQTT client id."`
}

// convPath begins the path of what is done to one conversation.
const convPath = "/v1/conversations/{kind}/{id}"

// ConvPath names a conversation.
type ConvPath struct {
	Kind string `path:"kind" enum:"dm,g" doc:"dm: the conversation with a user; g: a group."`
	ID   string `path:"id" maxLength:"64" pattern:"^[a-z0-9._-]*[a-z0-9_-][a-z0-9._-]*$" patternDescription:"a user or group id (a-z 0-9 . _ -, not only dots)" doc:"The user's or the group's id. Over RPC kind and id can also be given as one: {\"conv\":\"dm/bob\"}."`
}

// conv is the log that me means.
func (p ConvPath) conv(me im.UserID) (im.ConvID, error) { return im.ParseConv(me, p.Kind+"/"+p.ID) }

// Search is the paging of lists of users.
type Search struct {
	Q     string    `query:"q" maxLength:"64" doc:"What the id or the name begins with."`
	After im.UserID `query:"after" maxLength:"64" doc:"Only ids greater than this: the last one of the page before."`
	Limit int       `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"At most so many."`
}

type profile struct {
	User im.UserID `json:"user" doc:"The user's id." example:"alice"`
	Name string    `json:"name" doc:"The name shown to people." example:"Alice"`
}

type account struct {
	User     im.UserID `json:"user" doc:"The user's id." example:"alice"`
	Name     string    `json:"name" doc:"The name shown to people."`
	Role     string    `json:"role" enum:"user,admin" doc:"What the user may do on this server."`
	Disabled bool      `json:"disabled" doc:"A disabled account cannot log in or connect."`
	Created  int64     `json:"created" doc:"Unix milliseconds."`
}

type friend struct {
	User   im.UserID `json:"user" example:"bob"`
	Name   string    `json:"name" doc:"The name the friend gave themself."`
	Remark string    `json:"remark" doc:"One's own name for the friend."`
	State  string    `json:"state" enum:"friends,requested" doc:"friends, or requested: asked and not yet answered."`
	Since  int64     `json:"since" doc:"Since when, Unix milliseconds."`
}

type friendRequest struct {
	User      im.UserID `json:"user" doc:"The other user."`
	Name      string    `json:"name" doc:"The other user's name."`
	Message   string    `json:"message" doc:"What was written with the request."`
	Direction string    `json:"direction" enum:"in,out" doc:"in: the other one asks; out: one asked oneself."`
	Since     int64     `json:"since" doc:"Unix milliseconds."`
}

type member struct {
	User       im.UserID `json:"user" example:"alice"`
	Role       string    `json:"role" enum:"owner,admin,member"`
	MutedUntil int64     `json:"muted_until,omitempty" doc:"May not write before, Unix milliseconds."`
}

type group struct {
	Group      im.GroupID `json:"group" doc:"The group's id."`
	Name       string     `json:"name"`
	Owner      im.UserID  `json:"owner"`
	Members    []member   `json:"members" nullable:"false"`
	Join       string     `json:"join" enum:"invite,admin" doc:"Who brings in members: any member (invite), or owner and admins only (admin)."`
	MaxMembers int        `json:"max_members"`
	MuteAll    bool       `json:"mute_all" doc:"Only owner and admins may write."`
	Created    int64      `json:"created" doc:"Unix milliseconds."`
}

// envelope describes a message as im.AppendEnvelope writes it. It is only
// documentation: envelopes pass through as they are.
type envelope struct {
	Seq      im.Seq          `json:"seq" doc:"The place in the conversation."`
	From     im.UserID       `json:"from,omitempty" doc:"The author."`
	TS       int64           `json:"ts" doc:"When it was committed, Unix milliseconds."`
	ID       string          `json:"id,omitempty" doc:"The sender's own message id."`
	Op       string          `json:"op,omitempty" enum:"edit,recall,react" doc:"What an operation does to the message ref."`
	Ref      im.Seq          `json:"ref,omitempty" doc:"The seq that op is about."`
	Event    string          `json:"event,omitempty" doc:"A change of membership, such as member-added."`
	Recalled bool            `json:"recalled,omitempty" doc:"The message was recalled: it has no body."`
	Type     string          `json:"type,omitempty" doc:"The body's media type."`
	Text     string          `json:"text,omitempty" doc:"A body that is text."`
	JSON     json.RawMessage `json:"json,omitempty" doc:"A body that is JSON."`
	Data     []byte          `json:"data,omitempty" doc:"Any other body, in base64."`
}

// message is an envelope already written, shown in the document as one.
type message json.RawMessage

// MarshalJSON writes the envelope as it is; null where there is none.
func (m message) MarshalJSON() ([]byte, error) { return json.RawMessage(m).MarshalJSON() }

// Schema tells huma what is in it.
func (message) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[envelope](), true, "Envelope")
}

type conversation struct {
	Conv   string  `json:"conv" doc:"The conversation as its topic: dm/{user} or g/{group}." example:"dm/bob"`
	Head   im.Seq  `json:"head" doc:"The seq of the last entry."`
	Read   im.Seq  `json:"read" doc:"The highest seq read."`
	Unread int     `json:"unread" doc:"Messages of others after read."`
	Last   message `json:"last" doc:"The last entry."`
}

type device struct {
	Device   im.DeviceID `json:"device" doc:"The device's id: its MQTT client id."`
	Online   bool        `json:"online" doc:"Connected now."`
	Created  int64       `json:"created" doc:"First seen, Unix milliseconds."`
	LastSeen int64       `json:"last_seen" doc:"When it last connected or went, Unix milliseconds."`
	Protocol string      `json:"protocol" doc:"The MQTT version it last spoke: 3.1.1, 5.0, or empty if it never connected."`
	Session  bool        `json:"session" doc:"It has a persistent session."`
}

// convert maps a list.
func convert[A, B any](as []A, f func(A) B) []B {
	bs := make([]B, 0, len(as))
	for _, x := range as {
		bs = append(bs, f(x))
	}
	return bs
}
