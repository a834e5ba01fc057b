package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/parley-im/parley/app"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/internal/load"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/pebblestore"
)

// grow puts into the store of a stopped server what a house has after years: it
// writes rows and entries as the server would, without the accounts' logins and
// requests that would take hours.
func grow(ctx context.Context, dir string, g load.Grow) (err error) {
	st, err := pebblestore.Open(app.StoreDir(dir), pebblestore.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	x := &grower{st: st, now: time.Now().UnixMilli()}
	for after := im.UserID(""); ; {
		us, err := st.FindUsers(ctx, "bench-", after, 1000)
		if err != nil {
			return err
		}
		if len(us) == 0 {
			break
		}
		for _, u := range us {
			x.users = append(x.users, u.ID)
		}
		after = us[len(us)-1].ID
	}
	if len(x.users) == 0 {
		return errors.New("the scenario has no users to grow around")
	}
	return errors.Join(x.members(ctx, g.Members), x.stored(ctx, g.Stored), x.conversations(ctx, g.Conversations))
}

type grower struct {
	st    store.Store
	users []im.UserID
	now   int64
}

// convs lists the groups of the scenario's users and the conversations of its
// friends, each once.
func (x *grower) convs(ctx context.Context) (list []im.ConvID, err error) {
	seen := map[im.ConvID]bool{}
	add := func(c im.ConvID) {
		if !seen[c] {
			seen[c] = true
			list = append(list, c)
		}
	}
	for _, u := range x.users {
		ps, err := x.st.Conversations(ctx, u)
		if err != nil {
			return nil, err
		}
		for _, p := range ps {
			if p.Conv.Group() != "" {
				add(p.Conv)
			}
		}
		rs, err := x.st.Relations(ctx, u)
		if err != nil {
			return nil, err
		}
		for _, r := range rs {
			if r.State == store.Friends {
				add(im.DM(u, r.Peer))
			}
		}
	}
	return list, nil
}

// members adds users with a device to each group, until it has n.
func (x *grower) members(ctx context.Context, n int) error {
	if n == 0 {
		return nil
	}
	convs, err := x.convs(ctx)
	if err != nil {
		return err
	}
	for _, c := range convs {
		if c.Group() == "" {
			continue
		}
		ms, err := x.st.Members(ctx, c.Group())
		if err != nil {
			return err
		}
		for i := len(ms); i < n; {
			tx := &store.Tx{}
			var devices []store.Device
			for ; i < n && len(tx.Users) < 1000; i++ {
				u := im.UserID(fmt.Sprintf("crowd-%s-%d", c.Group(), i))
				tx.Users = append(tx.Users, store.User{ID: u, Created: x.now})
				tx.Members = append(tx.Members, store.Member{Group: c.Group(), User: u, Role: "member", Since: x.now})
				devices = append(devices, store.Device{Key: im.DeviceKey{User: u, Device: "phone"}, Created: x.now, LastSeen: x.now, Version: 4})
			}
			if err := x.st.Commit(ctx, tx); err != nil {
				return err
			}
			for _, d := range devices {
				if err := x.st.PutDevice(ctx, d, false); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// conversations makes every user a member of n groups.
func (x *grower) conversations(ctx context.Context, n int) error {
	for i := range n {
		id := im.GroupID(fmt.Sprint("crowd-", i))
		tx := &store.Tx{
			Groups:  []store.Group{{ID: id, Name: "crowd", Owner: x.users[0], Join: "invite", Created: x.now}},
			Entries: []*store.Append{{Entry: im.Entry{Conv: im.GroupConv(id), From: x.users[0], Op: im.OpEvent, Event: "group-created", Body: []byte(`{"by":"` + string(x.users[0]) + `"}`)}}},
		}
		for k, u := range x.users {
			role := "member"
			if k == 0 {
				role = "owner"
			}
			// From after the creation on: devices that are away have missed nothing of it.
			tx.Members = append(tx.Members, store.Member{Group: id, User: u, Role: role, Since: x.now, Start: 1})
		}
		if err := x.st.Commit(ctx, tx); err != nil {
			return err
		}
	}
	return nil
}

// stored appends n messages of 100 bytes to the scenario's conversations in turns.
func (x *grower) stored(ctx context.Context, n int) error {
	if n == 0 {
		return nil
	}
	convs, err := x.convs(ctx)
	if err != nil {
		return err
	}
	if len(convs) == 0 {
		return errors.New("the scenario has no conversations for stored messages")
	}
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	body := []byte(strings.Repeat("long ago. ", 10))
	for i := range n {
		c := convs[i%len(convs)]
		from, _ := c.Pair()
		if from == "" {
			from = x.users[0]
		}
		wg.Add(1)
		x.st.Append(&store.Append{Entry: im.Entry{Conv: c, From: from, Device: "phone", Body: body}, Done: func(a *store.Append) {
			defer wg.Done()
			if a.Err != nil {
				mu.Lock()
				failed = a.Err
				mu.Unlock()
			}
		}})
	}
	wg.Wait()
	return failed
}
