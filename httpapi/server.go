package httpapi

import (
	"log/slog"
	"net/http"
	"time"
)

// NewServer returns a server for h with the time and size limits a public
// listener needs; it starts nothing. A header must arrive within 10 s and in
// 16 KB; a whole exchange may take 5 minutes, which is for uploads: operations
// have shorter limits of their own. A hijacked connection (WebSocket) is free of
// them. What net/http has to say goes to log at debug.
func NewServer(addr string, h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Addr:              addr,
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       5 * time.Minute,
		WriteTimeout:      5 * time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
