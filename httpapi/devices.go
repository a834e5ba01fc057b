package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

func (a *API) deviceOperations(book huma.API) {
	const tag = "devices"

	define(a, book, operation{
		id: "devices.list", method: http.MethodGet, path: "/v1/devices", tag: tag,
		summary: "List one's devices",
	}, a.listDevices)

	define(a, book, operation{
		id: "devices.remove", method: http.MethodDelete, path: "/v1/devices/{device}", tag: tag,
		summary:  "Disconnect a device and forget it",
		detail:   "Its session and its place in every conversation are gone: if it connects again it is a new device.",
		refusals: map[int]string{404: "`device_not_found`: no such device."},
	}, a.removeDevice)
}

func (a *API) listDevices(ctx context.Context, c Caller, _ *none) (*reply[[]device], error) {
	ds, err := a.opt.Devices.DevicesOf(ctx, c.User)
	return answerList(convert(ds, func(d store.Device) device {
		return device{
			Device: d.Key.Device, Online: a.opt.Sessions.Online(d.Key), Created: d.Created, LastSeen: d.LastSeen,
			Protocol: protocolName(d.Version), Session: d.Session.Present,
		}
	}), err)
}

func protocolName(version byte) string {
	switch version {
	case 4:
		return "3.1.1"
	case 5:
		return "5.0"
	}
	return ""
}

func (a *API) removeDevice(ctx context.Context, c Caller, in *DevicePath) (*none, error) {
	k := im.DeviceKey{User: c.User, Device: in.Device}
	_, err := a.opt.Devices.Device(ctx, k)
	if im.Is(err, im.NotFound) {
		return nil, im.Refuse(im.NotFound, "device_not_found", "you have no device of this id")
	}
	if err != nil {
		return nil, err
	}
	return answerNone(a.opt.Sessions.Forget(ctx, k))
}
