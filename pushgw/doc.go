// Package pushgw rings phones that are away, over APNs, FCM and Web Push. A push
// is a hint: content always comes from the log.
//
// A Gateway derives bells from the log. It rings them itself, or writes them into
// the store, where any number of Workers in other processes lease them.
//
// The makers of each provider are in apns, fcm and webpush; they turn a Push into
// the provider's request and its answer into an Outcome, and know nothing of
// queues or retries. pushtest simulates the providers.
package pushgw
