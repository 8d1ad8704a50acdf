package registry

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/longshore/longshore/images/fault"
)

// tokenKey says what a remembered credential is good for.
type tokenKey struct {
	host, path string
	auth       [sha256.Size]byte
}

type token struct {
	header  string // of Authorization
	expires time.Time
}

const (
	maxTokens      = 1000
	maxTokenAnswer = 1 << 20
	defaultExpiry  = time.Minute // token specification: when expires_in is left out
)

// login gives user name and password, from whichever field carries them.
func (a *Auth) login() (user, password string) {
	if a == nil {
		return "", ""
	}
	if a.Username != "" || a.Auth == "" {
		return a.Username, a.Password
	}
	raw, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		return "", ""
	}
	user, password, _ = strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
	return user, password
}

func (s *source) tokenKey() tokenKey {
	key := tokenKey{host: s.base, path: s.path}
	if s.auth != nil {
		// Not the words themselves: what is kept should not be what was given.
		key.auth = sha256.Sum256(fmt.Appendf(nil, "%q", *s.auth))
	}
	return key
}

// authorization gives the header that satisfied this host before, if any.
func (s *source) authorization() string {
	if s.auth != nil && s.auth.RegistryToken != "" {
		return "Bearer " + s.auth.RegistryToken
	}
	c, key := s.client, s.tokenKey()
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.tokens[key]
	if ok && !t.expires.IsZero() && time.Now().After(t.expires) {
		delete(c.tokens, key)
		return ""
	}
	return t.header
}

func (s *source) keep(t token) {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.tokens) >= maxTokens {
		clear(c.tokens)
	}
	c.tokens[s.tokenKey()] = t
}

// authorize answers a host's challenge and remembers what will satisfy it.
func (s *source) authorize(ctx context.Context, headers []string) error {
	var basic bool
	for _, ch := range parseChallenges(headers) {
		switch ch.scheme {
		case "bearer":
			t, err := s.fetchToken(ctx, ch.params)
			if err == nil {
				s.keep(t)
			}
			return err
		case "basic":
			basic = true
		}
	}
	user, password := s.auth.login()
	if !basic || user == "" {
		return fmt.Errorf("%w: registry %s wants a credential for %s", fault.ErrUnauthorized, s.host, s.path)
	}
	s.keep(token{header: "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))})
	return nil
}

// fetchToken asks the token service that the registry names (distribution
// specification of tokens: GET, or OAuth2 POST with a refresh token).
func (s *source) fetchToken(ctx context.Context, params map[string]string) (token, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" {
		return token{}, fmt.Errorf("%w: registry %s names no token service", fault.ErrUnauthorized, s.host)
	}
	if realm.Scheme != "https" && (realm.Scheme != "http" || strings.HasPrefix(s.base, "https:")) {
		return token{}, fmt.Errorf("%w: token service of %s is not reached by https", fault.ErrUnauthorized, s.host)
	}
	scope := params["scope"]
	if scope == "" {
		scope = "repository:" + s.path + ":pull"
	}
	req, err := s.tokenRequest(ctx, realm, params["service"], scope)
	if err != nil {
		return token{}, err
	}
	resp, err := s.send(req)
	if err != nil {
		return token{}, err
	}
	defer finish(resp)
	if resp.StatusCode != http.StatusOK {
		err := s.statusError(resp, "token for "+s.path)
		if resp.StatusCode == http.StatusBadRequest {
			err = fmt.Errorf("%w: %w", fault.ErrUnauthorized, err)
		}
		return token{}, err
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxTokenAnswer)).Decode(&answer); err != nil {
		return token{}, fmt.Errorf("%w: answer of token service %s: %w", fault.ErrUnauthorized, realm.Host, err)
	}
	if answer.Token == "" {
		answer.Token = answer.AccessToken
	}
	if answer.Token == "" || strings.ContainsAny(answer.Token, "\r\n") {
		return token{}, fmt.Errorf("%w: token service %s gave no token", fault.ErrUnauthorized, realm.Host)
	}
	life := defaultExpiry
	if answer.ExpiresIn > 0 && answer.ExpiresIn < 1<<31 {
		life = time.Duration(answer.ExpiresIn) * time.Second
	}
	// A tenth early: the token travels, and clocks differ.
	return token{header: "Bearer " + answer.Token, expires: time.Now().Add(life - life/10)}, nil
}

func (s *source) tokenRequest(ctx context.Context, realm *url.URL, service, scope string) (*http.Request, error) {
	if s.auth != nil && s.auth.IdentityToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {s.auth.IdentityToken},
			"service": {service}, "scope": {scope}, "client_id": {userAgent}}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	query := realm.Query()
	if service != "" {
		query.Set("service", service)
	}
	for part := range strings.FieldsSeq(scope) {
		query.Add("scope", part)
	}
	realm.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return nil, err
	}
	if user, password := s.auth.login(); user != "" {
		req.SetBasicAuth(user, password)
	}
	return req, nil
}

// challenge is one of a WWW-Authenticate header (RFC 9110, section 11.6.1).
type challenge struct {
	scheme string // in lower case
	params map[string]string
}

const maxChallenges = 16

// parseChallenges reads what it can of the headers and ignores the rest.
func parseChallenges(headers []string) []challenge {
	var found []challenge
	for _, rest := range headers {
		for rest != "" && len(found) < maxChallenges {
			var word string
			word, rest = cutWord(strings.TrimLeft(rest, " \t,"))
			if word == "" {
				break
			}
			rest = strings.TrimLeft(rest, " \t")
			value, isParam := strings.CutPrefix(rest, "=")
			if !isParam {
				found = append(found, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
				continue
			}
			if len(found) == 0 {
				break // a parameter of nothing
			}
			value, rest = cutValue(strings.TrimLeft(value, " \t"))
			found[len(found)-1].params[strings.ToLower(word)] = value
		}
	}
	return found
}

// cutWord cuts a token off the front of s.
func cutWord(s string) (word, rest string) {
	end := strings.IndexAny(s, " \t,=\"")
	if end < 0 {
		return s, ""
	}
	return s[:end], s[end:]
}

// cutValue cuts a token or a quoted string off the front of s.
func cutValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		return cutWord(s)
	}
	var out strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return out.String(), s[i+1:]
		case '\\':
			if i++; i == len(s) {
				return out.String(), ""
			}
		}
		out.WriteByte(s[i])
	}
	return out.String(), ""
}
