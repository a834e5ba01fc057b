// Package pushgw is the room that rings phones that are away, over APNs, FCM and
// Web Push. A push is a hint: content always comes from the log. It has no maker
// yet: devices that are away get what they missed when they return.
package pushgw
