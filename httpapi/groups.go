package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/parley-im/parley/chat"
	"github.com/parley-im/parley/im"
)

func (a *API) groupOperations(book huma.API) {
	const tag = "groups"
	hidden := map[int]string{404: "`group_not_found`: no such group, or none one is a member of."}
	guarded := map[int]string{403: "One's role in the group does not allow it.", 404: hidden[404]}

	define(a, book, operation{
		id: "groups.list", method: http.MethodGet, path: "/v1/groups", tag: tag,
		summary: "List the groups one is a member of",
	}, a.listGroups)

	define(a, book, operation{
		id: "groups.create", method: http.MethodPost, path: "/v1/groups", tag: tag, status: http.StatusCreated,
		summary:  "Make a group",
		detail:   "The caller is its owner. Every member named must be a friend of the caller; with one that is not, nothing is made.",
		refusals: map[int]string{403: "`not_friends`: one of the members is not a friend."},
	}, a.createGroup)

	define(a, book, operation{
		id: "groups.get", method: http.MethodGet, path: "/v1/groups/{group}", tag: tag,
		summary: "Show a group with its members", refusals: hidden,
	}, func(ctx context.Context, c Caller, in *GroupPath) (*reply[group], error) {
		g, err := a.opt.Chat.Group(ctx, c.User, in.Group)
		return answerWith(groupOf(g), err)
	})

	define(a, book, operation{
		id: "groups.update", method: http.MethodPatch, path: "/v1/groups/{group}", tag: tag,
		summary: "Change a group", refusals: guarded,
		detail: "Fields left out stay as they are. `owner` hands the group over to another member, and only the owner may.",
	}, a.updateGroup)

	define(a, book, operation{
		id: "groups.delete", method: http.MethodDelete, path: "/v1/groups/{group}", tag: tag,
		summary: "Dissolve a group", refusals: guarded,
		detail: "Only the owner may. The id is never used again.",
	}, func(ctx context.Context, c Caller, in *GroupPath) (*none, error) {
		return answerNone(a.opt.Chat.DissolveGroup(ctx, c.User, in.Group))
	})

	define(a, book, operation{
		id: "groups.members.put", method: http.MethodPut, path: "/v1/groups/{group}/members/{user}", tag: tag,
		summary: "Add a member, or change one's role or mute", refusals: guarded,
		detail: "Only a friend of the caller can be added. Roles are given by the owner; owner and admins mute members.",
	}, a.putMember)

	define(a, book, operation{
		id: "groups.members.remove", method: http.MethodDelete, path: "/v1/groups/{group}/members/{user}", tag: tag,
		summary: "Remove a member, or leave", refusals: guarded,
		detail: "Naming oneself leaves the group. The owner hands it over first, unless alone in it.",
	}, func(ctx context.Context, c Caller, in *MemberPath) (*none, error) {
		return answerNone(a.opt.Chat.RemoveMember(ctx, c.User, in.Group, in.User))
	})
}

func (a *API) listGroups(ctx context.Context, c Caller, _ *none) (*reply[[]group], error) {
	gs, err := a.opt.Chat.Groups(ctx, c.User)
	return answerList(convert(gs, groupOf), err)
}

type createGroupInput struct {
	Body struct {
		Name    string      `json:"name" minLength:"1" maxLength:"128" doc:"The name shown to people, one line of at most 128 bytes."`
		Members []im.UserID `json:"members,omitempty" maxItems:"1000" nullable:"false" doc:"Who is in it besides the caller: friends of the caller."`
	} `nameHint:"CreateGroup"`
}

func (a *API) createGroup(ctx context.Context, c Caller, in *createGroupInput) (*reply[group], error) {
	g, err := a.opt.Chat.CreateGroup(ctx, c.User, in.Body.Name, in.Body.Members)
	return answerWith(groupOf(g), err)
}

func groupOf(g chat.GroupInfo) group {
	return group{
		Group: g.ID, Name: g.Name, Owner: g.Owner, Join: g.Join, MaxMembers: g.MaxMembers, MuteAll: g.MuteAll, Created: g.Created,
		Members: convert(g.Members, memberOf),
	}
}

func memberOf(m chat.MemberInfo) member {
	return member{User: m.User, Role: m.Role, MutedUntil: m.MutedUntil}
}

type updateGroupInput struct {
	GroupPath
	Body struct {
		Name       *string    `json:"name,omitempty" minLength:"1" maxLength:"128"`
		Owner      *im.UserID `json:"owner,omitempty" maxLength:"64" doc:"The member who shall own the group."`
		Join       *string    `json:"join,omitempty" enum:"invite,admin" doc:"Who brings in members."`
		MaxMembers *int       `json:"max_members,omitempty" minimum:"1" doc:"How many members it may have, within the server's limit."`
		MuteAll    *bool      `json:"mute_all,omitempty" doc:"Only owner and admins may write."`
	} `nameHint:"UpdateGroup"`
}

type putMemberInput struct {
	MemberPath
	Body *struct {
		Role       *string `json:"role,omitempty" enum:"admin,member" doc:"member if left out, for a new member."`
		MutedUntil *int64  `json:"muted_until,omitempty" minimum:"0" maximum:"9007199254740991" doc:"May not write before, Unix milliseconds; 0 lifts it."`
	} `nameHint:"PutMember"`
}

func (a *API) updateGroup(ctx context.Context, c Caller, in *updateGroupInput) (*reply[group], error) {
	b := in.Body
	g, err := a.opt.Chat.UpdateGroup(ctx, c.User, in.Group, chat.GroupPatch{Name: b.Name, Owner: b.Owner, Join: b.Join, MaxMembers: b.MaxMembers, MuteAll: b.MuteAll})
	return answerWith(groupOf(g), err)
}

func (a *API) putMember(ctx context.Context, c Caller, in *putMemberInput) (*reply[group], error) {
	var p chat.MemberPatch
	if in.Body != nil {
		p = chat.MemberPatch{Role: in.Body.Role, MutedUntil: in.Body.MutedUntil}
	}
	if err := a.opt.Chat.PutMember(ctx, c.User, in.Group, in.User, p); err != nil {
		return nil, err
	}
	g, err := a.opt.Chat.Group(ctx, c.User, in.Group)
	return answerWith(groupOf(g), err)
}
