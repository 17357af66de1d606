package webhook

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // signature version 1 of SNS
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"
)

// envelope is what SNS posts, and puts into a queue that is not told to take
// messages raw.
type envelope struct {
	Type             string  `json:"Type"`
	MessageID        string  `json:"MessageId"`
	TopicARN         string  `json:"TopicArn"`
	Subject          *string `json:"Subject"`
	Message          string  `json:"Message"`
	Timestamp        string  `json:"Timestamp"`
	Token            string  `json:"Token"`
	SubscribeURL     string  `json:"SubscribeURL"`
	SignatureVersion string  `json:"SignatureVersion"`
	Signature        string  `json:"Signature"`
	SigningCertURL   string  `json:"SigningCertURL"`
}

const (
	typeNotification = "Notification"
	typeSubscription = "SubscriptionConfirmation"
	typeUnsubscribed = "UnsubscribeConfirmation"
)

// signed is the text whose signature the envelope carries; empty for a type that
// SNS does not have.
func (e *envelope) signed() string {
	var b strings.Builder
	add := func(name, value string) { b.WriteString(name + "\n" + value + "\n") }
	switch e.Type {
	case typeNotification:
		add("Message", e.Message)
		add("MessageId", e.MessageID)
		if e.Subject != nil {
			add("Subject", *e.Subject)
		}
		add("Timestamp", e.Timestamp)
	case typeSubscription, typeUnsubscribed:
		add("Message", e.Message)
		add("MessageId", e.MessageID)
		add("SubscribeURL", e.SubscribeURL)
		add("Timestamp", e.Timestamp)
		add("Token", e.Token)
	default:
		return ""
	}
	add("TopicArn", e.TopicARN)
	add("Type", e.Type)
	return b.String()
}

// Fetch gets a page of SNS. It follows no redirect, and returns an error for any
// status but 200: errGone if repeating is useless.
type Fetch func(ctx context.Context, url string) ([]byte, error)

var errGone = errors.New("there is no such page")

// fetchHTTPS is Fetch as it is meant to be. That the page is SNS's is the word of
// the certificate of its host, checked against the roots of this machine.
func fetchHTTPS() Fetch {
	client := &http.Client{Timeout: 5 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return func(ctx context.Context, page string) ([]byte, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
		if err != nil {
			return nil, err
		}
		answer, err := client.Do(r)
		if err != nil {
			return nil, err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
		switch {
		case err != nil:
			return nil, err
		case answer.StatusCode >= 400 && answer.StatusCode < 500:
			return nil, fmt.Errorf("%w: %s", errGone, answer.Status)
		case answer.StatusCode != http.StatusOK:
			return nil, errors.New(answer.Status)
		}
		return body, nil
	}
}

// sns tells whether it was SNS who speaks, for the topics that we know.
type sns struct {
	topics map[string]string // ARN to the host of its region
	fetch  Fetch

	mu      sync.Mutex
	certs   map[string]*x509.Certificate // by URL
	fetched []time.Time                  // of late
}

// newSNS needs ARNs that RegionHost knows.
func newSNS(arns []string, fetch Fetch) *sns {
	if fetch == nil {
		fetch = fetchHTTPS()
	}
	s := &sns{topics: map[string]string{}, fetch: fetch, certs: map[string]*x509.Certificate{}}
	for _, arn := range arns {
		if host, ok := RegionHost(arn); ok {
			s.topics[arn] = host
		}
	}
	return s
}

var topicARN = regexp.MustCompile(`^arn:(aws|aws-cn|aws-us-gov):sns:([a-z]{2}(?:-[a-z]+)+-[0-9]+):[0-9]{12}:[A-Za-z0-9_-]{1,256}$`)

// RegionHost returns the host of SNS in the region of a topic; false if the ARN is
// none of a topic.
func RegionHost(arn string) (host string, ok bool) {
	m := topicARN.FindStringSubmatch(arn)
	if m == nil {
		return "", false
	}
	host = "sns." + m[2] + ".amazonaws.com"
	if m[1] == "aws-cn" {
		host += ".cn"
	}
	return host, true
}

// maxAge is how old a message may be. SNS tries for an hour; what was redriven
// later comes through a queue. Older ones are somebody's recording.
const (
	maxAge    = 75 * time.Minute
	maxLeadOf = 15 * time.Minute // our clock may be slow
)

// open reads an envelope and checks all that needs no certificate.
func (s *sns) open(body []byte, now time.Time) (*envelope, error) {
	var e envelope
	if err := json.Unmarshal(body, &e); err != nil {
		return nil, invalid("the body is not what SNS sends; is raw message delivery on? It cannot be checked")
	}
	host, known := s.topics[e.TopicARN]
	if !known {
		return nil, forged("the topic is not among SES_TOPIC_ARNS")
	}
	if e.signed() == "" {
		return nil, invalid("the type of the message is not known")
	}
	at, err := time.Parse(time.RFC3339, e.Timestamp)
	if err != nil || now.Sub(at) > maxAge || at.Sub(now) > maxLeadOf {
		return nil, forged("the message is too old, or from the future")
	}
	// The host is that of the topic's region, not merely one that looks like it.
	if !pinned(e.SigningCertURL, host) {
		return nil, forged("the certificate is not from the SNS of the topic's region")
	}
	return &e, nil
}

var certPath = regexp.MustCompile(`^/[A-Za-z0-9_-]{1,100}\.pem$`)

// pinned reports whether a URL names a certificate on exactly that host.
func pinned(text, host string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Scheme == "https" && u.Host == host && u.User == nil && u.Opaque == "" && u.RawQuery == "" && u.Fragment == "" && u.RawPath == "" && certPath.MatchString(u.Path)
}

// verify returns nil if SNS has signed the message.
func (s *sns) verify(ctx context.Context, e *envelope, now time.Time) error {
	signature, err := base64.StdEncoding.DecodeString(e.Signature)
	if err != nil {
		return forged("the signature is none")
	}
	var hash crypto.Hash
	var sum []byte
	switch e.SignatureVersion {
	case "1":
		h := sha1.Sum([]byte(e.signed())) //nolint:gosec // as above; nobody finds a second text with the hash of a given one
		hash, sum = crypto.SHA1, h[:]
	case "2":
		h := sha256.Sum256([]byte(e.signed()))
		hash, sum = crypto.SHA256, h[:]
	default:
		return forged("the signature's version is not 1 or 2")
	}
	cert, err := s.certificate(ctx, e.SigningCertURL, s.topics[e.TopicARN], now)
	if err != nil {
		return err
	}
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok || rsa.VerifyPKCS1v15(key, hash, sum, signature) != nil {
		return forged("the signature does not fit the message")
	}
	return nil
}

// What anybody can make us do is to ask SNS for certificates: seldom.
const (
	maxFetches    = 20
	fetchesWithin = time.Minute
	maxCerts      = 16
)

// certificate returns a certificate of SNS. Its host was pinned.
func (s *sns) certificate(ctx context.Context, page, host string, now time.Time) (*x509.Certificate, error) {
	s.mu.Lock()
	cert := s.certs[page]
	s.mu.Unlock()
	if cert == nil {
		if !s.mayFetch(now) {
			return nil, away("too many certificates are asked for")
		}
		b, err := s.fetch(ctx, page)
		if errors.Is(err, errGone) {
			return nil, forged("SNS has no such certificate")
		}
		if err != nil {
			return nil, away("the certificate could not be fetched")
		}
		if cert = parse(b); cert == nil {
			return nil, forged("the certificate cannot be read")
		}
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return nil, forged("the certificate is not valid now")
	}
	if !isOfSNS(cert, host) {
		return nil, forged("the certificate is not one of SNS")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.certs) >= maxCerts {
		clear(s.certs)
	}
	s.certs[page] = cert
	return cert, nil
}

func (s *sns) mayFetch(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.fetched[:0]
	for _, at := range s.fetched {
		if now.Sub(at) < fetchesWithin {
			kept = append(kept, at)
		}
	}
	if s.fetched = kept; len(kept) >= maxFetches {
		return false
	}
	s.fetched = append(s.fetched, now)
	return true
}

// parse reads the first certificate of a PEM file, which is the one that signs.
func parse(b []byte) *x509.Certificate {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return cert
}

// isOfSNS reports whether a certificate is made out to SNS: to all of it, or to a
// region, under one of the names that it has there.
func isOfSNS(cert *x509.Certificate, host string) bool {
	for _, name := range []string{"sns.amazonaws.com", host, strings.Replace(host, "sns.", "sns-signing.", 1)} {
		if cert.VerifyHostname(name) == nil || len(cert.DNSNames) == 0 && cert.Subject.CommonName == name {
			return true
		}
	}
	return false
}

// confirm says yes to a subscription. The address is made here: the one in the
// message, although signed, is not asked.
func (s *sns) confirm(ctx context.Context, e *envelope) error {
	query := url.Values{"Action": {"ConfirmSubscription"}, "TopicArn": {e.TopicARN}, "Token": {e.Token}}
	_, err := s.fetch(ctx, "https://"+s.topics[e.TopicARN]+"/?"+query.Encode())
	if errors.Is(err, errGone) {
		return invalid("SNS does not take the confirmation (any more); ask it to send another")
	}
	if err != nil {
		return away("the subscription could not be confirmed")
	}
	return nil
}
