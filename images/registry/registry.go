// Package registry reads images from registries that speak the OCI
// distribution API.
//
// A [Client] belongs to one store and serves many pulls at once. It knows for
// each registry which hosts to ask (mirrors first, the registry itself last),
// what each must be told to answer, and which did not answer lately. A
// credential goes to the host it was given for, to the token service that host
// names, and nowhere else: not to mirrors, not along a redirect.
//
// Nothing it returns is trusted before its digest is verified, which it does
// itself for manifests and blobs.
package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"

	"github.com/longshore/longshore/images/fault"
)

// Host says how to reach one registry host.
type Host struct {
	// Mirrors are asked before the registry itself, in this order. Each is a
	// URL; a path in it comes before the repository's name, as for a proxy
	// that serves many registries: https://proxy.example/dockerhub.
	Mirrors []string
	// Insecure takes plain HTTP instead of HTTPS. Loopback hosts need no such
	// word, and mirrors say it by their scheme.
	Insecure bool
	// CA is the path of a PEM file with authorities to trust beside the system's.
	CA string
	// Auth is presented to this host when a pull brings no credential for it,
	// and always when the host serves as a mirror.
	Auth *Auth
}

// Config maps a registry's host, as it stands in a reference ("docker.io",
// "localhost:5000"), to how it is reached. "*" is for those not listed.
type Config map[string]Host

// Auth is a credential as the kubelet hands it over.
type Auth struct {
	Username, Password string
	// Auth is base64 of "username:password", for when these are empty.
	Auth string
	// IdentityToken is an OAuth2 refresh token.
	IdentityToken string
	// RegistryToken is a bearer token for the registry itself.
	RegistryToken string
	// ServerAddress is the host the credential is for; empty means any.
	ServerAddress string
}

const (
	idleTimeout = 60 * time.Second // without a byte, an attempt is over
	dialTimeout = 15 * time.Second
	attempts    = 3
	firstPause  = 250 * time.Millisecond // before the second attempt; doubled for the third
	maxPause    = 5 * time.Second        // however long a registry asks to wait
	downTime    = time.Minute            // for which a dead host is asked last
)

// Client reads from registries. Its methods may be called from any goroutine.
type Client struct {
	log *slog.Logger

	idle, pause time.Duration // shorter in tests

	mu      sync.Mutex              // guards all below
	config  Config                  // is not changed, only replaced
	clients map[string]*http.Client // by CA file
	tokens  map[tokenKey]token
	down    map[string]time.Time // hosts that did not answer, and when
}

// New makes a client. It reads no file and reaches no host yet.
func New(config Config, log *slog.Logger) *Client {
	return &Client{
		config: config, log: log, idle: idleTimeout, pause: firstPause,
		clients: map[string]*http.Client{}, tokens: map[tokenKey]token{}, down: map[string]time.Time{},
	}
}

// Close ends the connections that are kept for a next pull.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, client := range c.clients {
		client.CloseIdleConnections()
	}
}

// SetConfig replaces how hosts are reached, for repositories to come. Those
// that are being read from go on as they are.
func (c *Client) SetConfig(config Config) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.config = config
	for _, client := range c.clients {
		client.CloseIdleConnections()
	}
	clear(c.clients)
	clear(c.down)
}

func (c *Client) current() Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.config
}

// Repository is one repository and the hosts to read it from.
type Repository struct {
	client  *Client
	path    string
	sources []*source
}

// source is one host that may have the repository.
type source struct {
	client *Client
	http   *http.Client
	host   string // with port, as credentials and health know it
	base   string // scheme://host
	path   string // repository on this host
	query  string // tells a mirror of everything which registry is meant
	auth   *Auth
}

// Repository gives the repository that name names, to be read with auth.
func (c *Client) Repository(name reference.Named, auth *Auth) (*Repository, error) {
	domain, path := reference.Domain(name), reference.Path(name)
	config := c.current()
	settings, listed := config[domain]
	if !listed {
		settings = config["*"]
	}
	r := &Repository{client: c, path: path}
	for _, mirror := range settings.Mirrors {
		s, err := c.mirror(config, mirror, path)
		if err != nil {
			return nil, fmt.Errorf("mirror %s of %s: %w", mirror, domain, err)
		}
		if !listed {
			s.query = "ns=" + url.QueryEscape(domain)
		}
		r.sources = append(r.sources, s)
	}
	scheme := "https://"
	if settings.Insecure || isLoopback(domain) {
		scheme = "http://"
	}
	host := domain
	if host == "docker.io" {
		host = "registry-1.docker.io" // the name in references has no registry behind it
	}
	client, err := c.httpClient(settings.CA)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", domain, err)
	}
	own := &source{client: c, http: client, host: host, base: scheme + host, path: path, auth: settings.Auth}
	if auth != nil && auth.isFor(domain) {
		own.auth = auth
	}
	r.sources = append(r.sources, own)
	return r, nil
}

func (c *Client) mirror(config Config, mirror, path string) (*source, error) {
	u, err := url.Parse(mirror)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, errors.New("is not a URL like https://host:port/path")
	}
	settings := config[u.Host]
	client, err := c.httpClient(settings.CA)
	if err != nil {
		return nil, err
	}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		path = prefix + "/" + path
	}
	return &source{client: c, http: client, host: u.Host, base: u.Scheme + "://" + u.Host, path: path, auth: settings.Auth}, nil
}

// isFor reports whether a credential may be shown to the registry of domain.
func (a *Auth) isFor(domain string) bool {
	address := a.ServerAddress
	if address == "" {
		return true
	}
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		address = u.Host
	}
	address, _, _ = strings.Cut(address, "/")
	switch address {
	case "index.docker.io", "registry-1.docker.io":
		address = "docker.io"
	}
	return address == domain
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// httpClient gives the client that trusts the system's authorities and those in
// the file ca.
func (c *Client) httpClient(ca string) (*http.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if client := c.clients[ca]; client != nil {
		return client, nil
	}
	tlsConfig := &tls.Config{}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", ca)
		}
		tlsConfig.RootCAs = pool
	}
	client := &http.Client{
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSClientConfig:     tlsConfig,
			TLSHandshakeTimeout: dialTimeout,
			ForceAttemptHTTP2:   true,
			MaxIdleConnsPerHost: 8,
			IdleConnTimeout:     30 * time.Second,
			// Layers are hashed as they are stored, so nothing may recode them.
			DisableCompression: true,
			ReadBufferSize:     64 << 10,
		},
		CheckRedirect: checkRedirect,
	}
	c.clients[ca] = client
	return client, nil
}

// checkRedirect keeps a credential with the host it is for (CVE-2020-15157) and
// an encrypted exchange encrypted.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("more than 10 redirects")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirect from https to %s is refused", req.URL.Scheme)
	}
	if req.URL.Host != via[0].URL.Host || req.URL.Scheme != via[0].URL.Scheme {
		req.Header.Del("Authorization")
	}
	return nil
}

// each asks the sources in order until one satisfies ask. What the registry
// itself says is the answer; what mirrors said explains it.
func (r *Repository) each(ctx context.Context, ask func(*source) error) error {
	var answer error
	var mirrors []string
	own := r.sources[len(r.sources)-1]
	for _, s := range r.client.byHealth(r.sources) {
		err := ask(s)
		if err == nil || final(ctx, err) {
			return err
		}
		if s == own {
			answer = err
			continue
		}
		r.client.log.DebugContext(ctx, "mirror passed over", "host", s.host, "repository", r.path, "err", err)
		mirrors = append(mirrors, err.Error())
	}
	if len(mirrors) > 0 {
		return fmt.Errorf("%w (mirrors: %s)", answer, strings.Join(mirrors, "; "))
	}
	return answer
}

// final reports whether another host cannot help: the caller has gone, or what
// failed is on this side.
func final(ctx context.Context, err error) bool {
	return ctx.Err() != nil || !fault.Known(err) || errors.Is(err, fault.ErrNoSpace)
}

// byHealth puts the hosts that did not answer lately last: a dead mirror costs
// its time-out once a minute instead of once a request.
func (c *Client) byHealth(sources []*source) []*source {
	c.mu.Lock()
	defer c.mu.Unlock()
	var up, down []*source
	for _, s := range sources {
		if since, ok := c.down[s.host]; ok && time.Since(since) < downTime {
			down = append(down, s)
			continue
		}
		delete(c.down, s.host)
		up = append(up, s)
	}
	return append(up, down...)
}

func (c *Client) markDown(host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down[host] = time.Now()
}
