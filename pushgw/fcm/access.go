package fcm

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/jwt"
)

const (
	scope = "https://www.googleapis.com/auth/firebase.messaging"
	early = 5 * time.Minute // before its end a token is renewed: at 55 minutes of 60
	young = time.Minute     // a token of this age is not replaced, whoever refuses it
	pause = time.Second     // after a request for a token that failed
)

// account is a service account as Google's console gives it.
type account struct {
	Type       string `json:"type"`
	Project    string `json:"project_id"`
	KeyID      string `json:"private_key_id"`
	PrivateKey string `json:"private_key"`
	Email      string `json:"client_email"`
	TokenURI   string `json:"token_uri"`
}

func parseAccount(b []byte) (account, error) {
	var a account
	// The decoder's error could quote the key.
	if err := json.Unmarshal(b, &a); err != nil {
		return a, errors.New("fcm: the service account is not JSON")
	}
	if a.TokenURI == "" {
		a.TokenURI = "https://oauth2.googleapis.com/token"
	}
	u, err := url.Parse(a.TokenURI)
	switch {
	case a.Type != "service_account":
		return a, errors.New(`fcm: the service account's type is not "service_account"`)
	case a.Project == "" || url.PathEscape(a.Project) != a.Project || a.Email == "" || a.PrivateKey == "":
		return a, errors.New("fcm: the service account lacks project_id, client_email or private_key")
	case err != nil || u.Scheme != "https":
		return a, errors.New("fcm: token_uri of the service account is not an https address")
	case !rsaKey(a.PrivateKey):
		return a, errors.New("fcm: private_key of the service account is not an RSA key in PEM")
	}
	return a, nil
}

func rsaKey(s string) bool {
	block, _ := pem.Decode([]byte(s))
	if block == nil {
		return false
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		_, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		return err == nil
	}
	_, ok := key.(*rsa.PrivateKey)
	return ok
}

// access gets and keeps the OAuth token of one account. Only one request for a
// token is under way; the others wait for it as long as their context lets them.
type access struct {
	project string
	conf    *jwt.Config
	http    *http.Client
	now     func() time.Time

	turn   chan struct{} // held while the rest is used
	token  string
	made   time.Time
	ends   time.Time
	failed error // why there is no token, until again
	again  time.Time
}

func newAccess(a account, client *http.Client, now func() time.Time) *access {
	return &access{
		project: a.Project, http: client, now: now, turn: make(chan struct{}, 1),
		conf: &jwt.Config{Email: a.Email, PrivateKey: []byte(a.PrivateKey), PrivateKeyID: a.KeyID, TokenURL: a.TokenURI, Scopes: []string{scope}},
	}
}

// get is a token, and not the refused one unless that is young; "" refuses none.
func (a *access) get(ctx context.Context, refused string) (string, error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	now := a.now()
	if a.token != "" && now.Before(a.ends) && (a.token != refused || now.Sub(a.made) < young) {
		return a.token, nil
	}
	if now.Before(a.again) {
		return "", a.failed // all that waited meanwhile would ask one after the other
	}
	t, err := a.conf.TokenSource(context.WithValue(ctx, oauth2.HTTPClient, a.client(ctx))).Token()
	if err != nil {
		if ctx.Err() != context.Canceled { // that one says nothing about Google
			a.failed, a.again = err, now.Add(pause)
		}
		return "", err
	}
	life, _ := t.Extra("expires_in").(float64) // seconds; the library's Expiry is by its own clock
	a.token, a.made, a.ends = t.AccessToken, now, now.Add(time.Duration(life)*time.Second-early)
	return a.token, nil
}

// client gives requests for tokens the caller's context: the library has no place
// for it.
func (a *access) client(ctx context.Context) *http.Client {
	c := *a.http
	c.Transport = within{ctx, a.http.Transport}
	return &c
}

type within struct {
	ctx  context.Context // of one request only
	over http.RoundTripper
}

func (w within) RoundTrip(r *http.Request) (*http.Response, error) {
	return w.over.RoundTrip(r.WithContext(w.ctx))
}

// refusal reads the error of a request for a token. locked: Google refuses the
// account, and asking again will not help.
func refusal(err error) (reason string, header http.Header, locked bool) {
	var e *oauth2.RetrieveError
	if !errors.As(err, &e) {
		return "", nil, false
	}
	var body struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(e.Body, &body) != nil || word(body.Error) == "" {
		body.Error = fmt.Sprintf("http %d", e.Response.StatusCode)
	}
	status := e.Response.StatusCode
	return body.Error, e.Response.Header, status >= 400 && status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout
}
