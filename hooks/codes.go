package hooks

import (
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/im"
)

// publishCode is the one table from a house error to the reason code of a
// PUBACK or PUBREC. ok is false when there must be no acknowledgement at all:
// the client is to be disconnected and sends again.
func publishCode(err error) (code byte, ok bool) {
	switch im.KindOf(err) {
	case im.Forbidden, im.NotFound, im.Disabled, im.Unauthorized:
		return packets.ErrNotAuthorized.Code, true // an unknown user answers as a stranger does
	case im.TopicInvalid:
		return packets.ErrTopicNameInvalid.Code, true
	case im.TooMany, im.TooLarge:
		return packets.ErrQuotaExceeded.Code, true
	case im.Payload, im.Invalid:
		return packets.ErrPayloadFormatInvalid.Code, true
	case im.Unsupported, im.Conflict:
		return packets.ErrImplementationSpecificError.Code, true
	}
	return 0, false // Internal, Unavailable, Gone
}

// connectCode is the same for CONNACK.
func connectCode(err error) byte {
	switch im.KindOf(err) {
	case im.Unauthorized, im.NotFound:
		return packets.ErrBadUsernameOrPassword.Code
	case im.Disabled, im.Forbidden:
		return packets.ErrNotAuthorized.Code
	case im.TooMany:
		return packets.ErrQuotaExceeded.Code
	case im.TopicInvalid:
		return packets.ErrTopicNameInvalid.Code
	case im.Payload:
		return packets.ErrPayloadFormatInvalid.Code
	case im.Unsupported:
		return packets.ErrImplementationSpecificError.Code
	case im.Invalid:
		return packets.ErrClientIdentifierNotValid.Code
	case im.Unavailable, im.Gone:
		return packets.ErrServerUnavailable.Code
	}
	return packets.ErrUnspecifiedError.Code
}

// subscribeCode is the same for one filter of a SUBACK.
func subscribeCode(err error, version byte) byte {
	code := packets.ErrNotAuthorized.Code
	switch im.KindOf(err) {
	case im.TopicInvalid:
		code = packets.ErrTopicFilterInvalid.Code
	case im.TooMany:
		code = packets.ErrQuotaExceeded.Code
	case im.Internal, im.Unavailable, im.Gone:
		code = packets.ErrUnspecifiedError.Code
	}
	if version < 5 {
		return packets.ErrUnspecifiedError.Code // 0x80 Failure, the only one [MQTT-3.9.3-2]
	}
	return code
}
