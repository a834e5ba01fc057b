package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/parley-im/parley/chat"
	"github.com/parley-im/parley/im"
)

func (a *API) friendOperations(book huma.API) {
	const friends, requests, blocks = "friends", "friend requests", "blocks"

	define(a, book, operation{
		id: "friends.list", method: http.MethodGet, path: "/v1/friends", tag: friends,
		summary: "List one's friends",
		detail:  "Friends only: requests have a list of their own.",
	}, a.listFriends)

	define(a, book, operation{
		id: "friends.add", method: http.MethodPut, path: "/v1/friends/{user}", tag: friends,
		summary: "Ask for a friendship, or accept one",
		detail: "Answers `requested` when the other user now has to accept, `friends` when they had asked already. " +
			"Doing it again changes nothing but `remark`, where it is given.",
		refusals: map[int]string{404: "`user_not_found`: there is no such user.", 409: "One has blocked the user: unblock first."},
	}, a.addFriend)

	define(a, book, operation{
		id: "friends.remove", method: http.MethodDelete, path: "/v1/friends/{user}", tag: friends,
		summary:  "End a friendship",
		detail:   "It ends for both at once. The conversation stays readable for both.",
		refusals: map[int]string{404: "`not_friends`: there is no friendship."},
	}, func(ctx context.Context, c Caller, in *UserPath) (*none, error) {
		return answerNone(a.opt.Chat.RemoveFriend(ctx, c.User, in.User))
	})

	define(a, book, operation{
		id: "friend-requests.list", method: http.MethodGet, path: "/v1/friend-requests", tag: requests,
		summary: "List open friend requests, of both directions",
	}, a.listRequests)

	define(a, book, operation{
		id: "friend-requests.remove", method: http.MethodDelete, path: "/v1/friend-requests/{user}", tag: requests,
		summary:  "Refuse a request, or withdraw one's own",
		refusals: map[int]string{404: "`request_not_found`: there is none, of either direction."},
	}, func(ctx context.Context, c Caller, in *UserPath) (*none, error) {
		return answerNone(a.opt.Chat.RefuseRequest(ctx, c.User, in.User))
	})

	define(a, book, operation{
		id: "blocks.list", method: http.MethodGet, path: "/v1/blocks", tag: blocks,
		summary: "List the users one has blocked",
	}, a.listBlocks)

	define(a, book, operation{
		id: "blocks.add", method: http.MethodPut, path: "/v1/blocks/{user}", tag: blocks,
		summary: "Block a user",
		detail: "Refuses messages of both directions from the next one on. The blocked user is not told, and a " +
			"friendship stays for after the unblock.",
		refusals: map[int]string{404: "`user_not_found`: there is no such user."},
	}, func(ctx context.Context, c Caller, in *UserPath) (*none, error) {
		return answerNone(a.opt.Chat.Block(ctx, c.User, in.User))
	})

	define(a, book, operation{
		id: "blocks.remove", method: http.MethodDelete, path: "/v1/blocks/{user}", tag: blocks,
		summary: "Unblock a user",
	}, func(ctx context.Context, c Caller, in *UserPath) (*none, error) {
		return answerNone(a.opt.Chat.Unblock(ctx, c.User, in.User))
	})
}

type addFriendInput struct {
	UserPath
	Body *struct {
		Message string  `json:"message,omitempty" maxLength:"256" doc:"Shown to the user with the request, at most 256 bytes."`
		Remark  *string `json:"remark,omitempty" maxLength:"128" doc:"One's own name for the user, at most 128 bytes."`
	} `nameHint:"AddFriend"`
}

type friendState struct {
	State string `json:"state" enum:"requested,friends"`
}

func (a *API) addFriend(ctx context.Context, c Caller, in *addFriendInput) (*reply[friendState], error) {
	message, remark := "", (*string)(nil)
	if in.Body != nil {
		message, remark = in.Body.Message, in.Body.Remark
	}
	state, err := a.opt.Chat.AddFriend(ctx, c.User, in.User, message, remark)
	return answerWith(friendState{State: state}, err)
}

func (a *API) listFriends(ctx context.Context, c Caller, _ *none) (*reply[[]friend], error) {
	fs, err := a.opt.Chat.Friends(ctx, c.User)
	return answerList(convert(fs, func(f chat.Friend) friend {
		return friend{User: f.User, Name: f.Name, Remark: f.Remark, State: f.State, Since: f.Since}
	}), err)
}

func (a *API) listRequests(ctx context.Context, c Caller, _ *none) (*reply[[]friendRequest], error) {
	rs, err := a.opt.Chat.FriendRequests(ctx, c.User)
	return answerList(convert(rs, func(r chat.FriendRequest) friendRequest {
		return friendRequest{User: r.User, Name: r.Name, Message: r.Message, Direction: r.Direction, Since: r.Since}
	}), err)
}

type blocked struct {
	User im.UserID `json:"user" doc:"The blocked user."`
	Name string    `json:"name" doc:"The user's name."`
}

func (a *API) listBlocks(ctx context.Context, c Caller, _ *none) (*reply[[]blocked], error) {
	bs, err := a.opt.Chat.Blocks(ctx, c.User)
	return answerList(convert(bs, func(b chat.Block) blocked { return blocked{User: b.User, Name: b.Name} }), err)
}
