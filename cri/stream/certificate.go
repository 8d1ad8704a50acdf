package stream

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Certificates gives a TLS configuration of a certificate and its key in PEM
// files, which are read again when they have changed: certificates are renewed
// while the daemon runs. One that cannot be read is an error now; later it is
// logged, and the last good one stays in use.
func Certificates(certFile, keyFile string, log *slog.Logger) (*tls.Config, error) {
	p := &pair{files: [2]string{certFile, keyFile}, log: log}
	if err := p.load(); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: p.get}, nil
}

// pair is a certificate as it is in its files.
type pair struct {
	files [2]string
	log   *slog.Logger

	mu     sync.Mutex // guards all below
	stamps [2]stamp
	loaded *tls.Certificate
}

// stamp tells one content of a file from another. Renewal replaces the file,
// or the directory that a link leads to; either way one of these changes.
type stamp struct {
	size    int64
	changed time.Time
}

func (p *pair) load() error {
	var stamps [2]stamp
	for i, name := range p.files {
		info, err := os.Stat(name)
		if err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
		stamps[i] = stamp{info.Size(), info.ModTime()}
	}
	if p.loaded != nil && stamps == p.stamps {
		return nil
	}
	loaded, err := tls.LoadX509KeyPair(p.files[0], p.files[1])
	if err != nil {
		return fmt.Errorf("certificate %s: %w", p.files[0], err)
	}
	p.stamps, p.loaded = stamps, &loaded
	return nil
}

func (p *pair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.load(); err != nil {
		p.log.Warn("the streaming server goes on with its old certificate", "err", err)
	}
	return p.loaded, nil
}
