package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/pushgw"
)

// Push is where devices are registered to be rung; nil: this server rings nobody.
type Push interface {
	Register(ctx context.Context, k im.DeviceKey, family string, a pushgw.Address) error
	Unregister(ctx context.Context, k im.DeviceKey) error
	Settings(u im.UserID) pushgw.Settings
	PutSettings(ctx context.Context, u im.UserID, privacy string, quiet *pushgw.Quiet) error
	PutLevel(ctx context.Context, u im.UserID, conv im.ConvID, l pushgw.ConvLevel) error
	Explain(ctx context.Context, conv im.ConvID, seq im.Seq) ([]pushgw.Step, error)
	Dead(ctx context.Context) ([]pushgw.DeadLetter, error)
	Replay(ctx context.Context, ids []string) (int, error)
	Try(ctx context.Context, k im.DeviceKey, text string) (pushgw.Result, error)
}

func (a *API) pushOperations(book huma.API) {
	const tag = "push"
	off := map[int]string{422: "`push_off`: push is switched off here."}

	define(a, book, operation{
		id: "devices.push.set", method: http.MethodPut, path: "/v1/devices/{device}/push", tag: tag,
		summary: "Say where a device is rung", refusals: off,
		detail: "Apps do this at every start. A token belongs to one device: registering it takes it from any other, of this user or another. " +
			"The device need not have connected yet. Logging out removes it.",
	}, a.setPush)
	define(a, book, operation{
		id: "devices.push.remove", method: http.MethodDelete, path: "/v1/devices/{device}/push", tag: tag,
		summary: "Ring a device no more", refusals: off,
	}, a.removePush)
	define(a, book, operation{
		id: "push.settings.get", method: http.MethodGet, path: "/v1/push", tag: tag,
		summary: "Show what one is rung for", refusals: off,
	}, a.getPushSettings)
	define(a, book, operation{
		id: "push.settings.set", method: http.MethodPut, path: "/v1/push", tag: tag,
		summary: "Say what one is rung for", refusals: off,
		detail: "Mentions and calls ring in quiet hours too. Levels of conversations stay as they are.",
	}, a.setPushSettings)
	define(a, book, operation{
		id: "push.level.set", method: http.MethodPut, path: convPath + "/push", tag: tag,
		summary: "Say what one is rung for in one conversation", refusals: off,
		detail: "Without a level, everything rings, and in large groups mentions only.",
	}, a.setPushLevel)
	define(a, book, operation{
		id: "admin.push.explain", method: http.MethodGet, path: "/v1/admin/push/explain", tag: tag, admin: true,
		summary: "Explain why a message rang whom", refusals: off,
		detail: "The latest decisions are kept since the server started.",
	}, a.explainPush)
	define(a, book, operation{
		id: "admin.push.dead", method: http.MethodGet, path: "/v1/admin/push/dead", tag: tag, admin: true,
		summary: "List what could not be rung", refusals: off,
	}, a.deadPush)
	define(a, book, operation{
		id: "admin.push.replay", method: http.MethodPost, path: "/v1/admin/push/replay", tag: tag, admin: true,
		summary: "Ring again what could not be", refusals: off,
	}, a.replayPush)
	define(a, book, operation{
		id: "admin.push.send", method: http.MethodPost, path: "/v1/admin/push/send", tag: tag, admin: true,
		summary: "Try a device's address", refusals: map[int]string{404: "`no_address`, `no_such_app`: there is nothing to try.", 422: off[422]},
		detail: "Sends one push at once and answers what the provider said.",
	}, a.tryPush)
}

func (a *API) push() (Push, error) {
	if a.opt.Push == nil {
		return nil, im.Refuse(im.Unsupported, "push_off", "push is switched off here")
	}
	return a.opt.Push, nil
}

type setPushInput struct {
	DevicePath
	Body struct {
		Provider    string `json:"provider" enum:"apns,fcm,webpush" doc:"Who delivers."`
		App         string `json:"app" minLength:"1" maxLength:"200" doc:"The app's name in the server's configuration."`
		Token       string `json:"token" minLength:"1" maxLength:"4096" doc:"APNs: the device token in hexadecimal. FCM: the registration token or installation id. Web Push: the subscription, as JSON text."`
		Environment string `json:"environment,omitempty" enum:"production,sandbox" doc:"APNs: where the token is from. Without it both are tried."`
		Kind        string `json:"kind,omitempty" enum:"token,fid,voip" doc:"FCM: token, or fid for an installation id. APNs: voip for a PushKit token, which is rung for calls and kept beside the other one."`
	}
}

func (a *API) setPush(ctx context.Context, c Caller, in *setPushInput) (*none, error) {
	p, err := a.push()
	if err != nil {
		return nil, err
	}
	b := &in.Body
	return answerNone(p.Register(ctx, im.DeviceKey{User: c.User, Device: in.Device}, c.Identity.Family,
		pushgw.Address{Provider: b.Provider, App: b.App, Token: b.Token, Environment: b.Environment, Kind: b.Kind}))
}

func (a *API) removePush(ctx context.Context, c Caller, in *DevicePath) (*none, error) {
	p, err := a.push()
	if err != nil {
		return nil, err
	}
	return answerNone(p.Unregister(ctx, im.DeviceKey{User: c.User, Device: in.Device}))
}

type quietHours struct {
	From string `json:"from" maxLength:"5" example:"22:00"`
	To   string `json:"to" maxLength:"5" example:"07:00" doc:"Before from: on the next day."`
	Zone string `json:"zone" maxLength:"64" example:"Europe/Berlin" doc:"An IANA time zone."`
}

type pushSettings struct {
	Privacy string      `json:"privacy,omitempty" enum:"full,sender,none,id-only" doc:"What a push says: at most what the server is configured for."`
	Quiet   *quietHours `json:"quiet,omitempty" doc:"Hours in which only mentions and calls ring."`
}

type pushLevel struct {
	Level string `json:"level,omitempty" enum:"all,mentions,none" doc:"What rings."`
	Muted int64  `json:"muted_until,omitempty" minimum:"0" doc:"Only mentions before this, Unix milliseconds."`
}

type shownSettings struct {
	pushSettings
	Conversations map[string]pushLevel `json:"conversations" doc:"By conversation: dm/bob, g/team."`
}

func (a *API) getPushSettings(_ context.Context, c Caller, _ *none) (*reply[shownSettings], error) {
	p, err := a.push()
	if err != nil {
		return nil, err
	}
	s := p.Settings(c.User)
	out := shownSettings{pushSettings: pushSettings{Privacy: s.Privacy}, Conversations: map[string]pushLevel{}}
	if s.Quiet != nil {
		q := quietHours(*s.Quiet)
		out.Quiet = &q
	}
	for conv, l := range s.Conv {
		out.Conversations[conv.Topic(c.User)] = pushLevel(l)
	}
	return answerWith(out, nil)
}

type setPushSettingsInput struct{ Body pushSettings }

func (a *API) setPushSettings(ctx context.Context, c Caller, in *setPushSettingsInput) (*none, error) {
	p, err := a.push()
	if err != nil {
		return nil, err
	}
	var hours *pushgw.Quiet
	if q := in.Body.Quiet; q != nil {
		hours = (*pushgw.Quiet)(q)
	}
	return answerNone(p.PutSettings(ctx, c.User, in.Body.Privacy, hours))
}

type setPushLevelInput struct {
	ConvPath
	Body pushLevel
}

func (a *API) setPushLevel(ctx context.Context, c Caller, in *setPushLevelInput) (*none, error) {
	p, err := a.push()
	if err != nil {
		return nil, err
	}
	conv, err := in.conv(c.User)
	if err != nil {
		return nil, err
	}
	return answerNone(p.PutLevel(ctx, c.User, conv, pushgw.ConvLevel(in.Body)))
}

type explainInput struct {
	User im.UserID `query:"user" required:"true" maxLength:"64" doc:"Whose view names the conversation."`
	Conv string    `query:"conv" required:"true" maxLength:"140" doc:"The conversation as that user writes it: dm/bob, g/team."`
	Seq  im.Seq    `query:"seq" required:"true" minimum:"1" doc:"The message."`
}

type pushStep struct {
	At     int64       `json:"at" doc:"Unix milliseconds."`
	First  im.Seq      `json:"first" doc:"The first message that the push stands for."`
	Last   im.Seq      `json:"last" doc:"The last one."`
	User   im.UserID   `json:"user" doc:"Empty, with device: it was decided for all others of a group at once."`
	Device im.DeviceID `json:"device"`
	Step   string      `json:"step" doc:"eligible, collapse, grace, quiet, send or record."`
	Go     bool        `json:"go" doc:"The bell goes on."`
	Reason string      `json:"reason"`
	Detail string      `json:"detail,omitempty"`
}

func (a *API) explainPush(ctx context.Context, _ Caller, in *explainInput) (*reply[[]pushStep], error) {
	p, err := a.push()
	if err != nil {
		return nil, err
	}
	conv, err := im.ParseConv(in.User, in.Conv)
	if err != nil {
		return nil, err
	}
	steps, err := p.Explain(ctx, conv, in.Seq)
	return answerList(convert(steps, func(s pushgw.Step) pushStep {
		return pushStep{At: s.At, First: s.First, Last: s.Last, User: s.Device.User, Device: s.Device.Device, Step: s.Step, Go: s.Go, Reason: s.Reason, Detail: s.Detail}
	}), err)
}

type deadLetter struct {
	ID       string      `json:"id"`
	At       int64       `json:"at" doc:"When it was given up, Unix milliseconds."`
	User     im.UserID   `json:"user"`
	Device   im.DeviceID `json:"device"`
	Conv     string      `json:"conv" doc:"As the user writes it."`
	First    im.Seq      `json:"first"`
	Last     im.Seq      `json:"last"`
	Provider string      `json:"provider"`
	App      string      `json:"app"`
	Reason   string      `json:"reason"`
}

func (a *API) deadPush(ctx context.Context, _ Caller, _ *none) (*reply[[]deadLetter], error) {
	p, err := a.push()
	if err != nil {
		return nil, err
	}
	dead, err := p.Dead(ctx)
	return answerList(convert(dead, func(l pushgw.DeadLetter) deadLetter {
		return deadLetter{ID: l.ID, At: l.At, User: l.Device.User, Device: l.Device.Device, Conv: l.Conv.Topic(l.Device.User), First: l.First, Last: l.Last, Provider: l.Provider, App: l.App, Reason: l.Reason}
	}), err)
}

type replayInput struct {
	Body struct {
		IDs []string `json:"ids,omitempty" maxItems:"10000" doc:"Which; without it all."`
	}
}

type replayed struct {
	Replayed int `json:"replayed"`
}

func (a *API) replayPush(ctx context.Context, _ Caller, in *replayInput) (*reply[replayed], error) {
	p, err := a.push()
	if err != nil {
		return nil, err
	}
	n, err := p.Replay(ctx, in.Body.IDs)
	return answerWith(replayed{n}, err)
}

type tryPushInput struct {
	Body struct {
		User   im.UserID   `json:"user" maxLength:"64"`
		Device im.DeviceID `json:"device" maxLength:"64"`
		Text   string      `json:"text,omitempty" maxLength:"200" doc:"What is shown."`
	}
}

type tried struct {
	Sent   bool   `json:"sent" doc:"The provider has it."`
	Reason string `json:"reason,omitempty" doc:"What the provider said."`
}

func (a *API) tryPush(ctx context.Context, _ Caller, in *tryPushInput) (*reply[tried], error) {
	p, err := a.push()
	if err != nil {
		return nil, err
	}
	res, err := p.Try(ctx, im.DeviceKey{User: in.Body.User, Device: in.Body.Device}, in.Body.Text)
	return answerWith(tried{Sent: res.Outcome == pushgw.Sent, Reason: res.Reason}, err)
}
