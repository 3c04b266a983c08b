package headrace

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"unicode"
)

const (
	defaultPort   = "50151"
	defaultTarget = "127.0.0.1:" + defaultPort
	https         = "https://"
	http          = "http://"
)

// endpoint is a server and the way to it.
type endpoint struct {
	target string      // as gRPC takes it
	tls    *tls.Config // nil: in the clear
	token  string      // "": none
}

// resolveEndpoint goes by what is given; what that leaves open the environment says.
func resolveEndpoint(target string, o *options) (endpoint, error) {
	if target == "" {
		target = os.Getenv("HEADRACE_HOST")
	}
	target = strings.TrimSpace(target)
	if target == "" {
		target = defaultTarget
	}
	scheme, host := splitScheme(target)
	host = withPort(host)
	if err := checkTarget(scheme, host, target); err != nil {
		return endpoint{}, err
	}
	to := endpoint{target: host}
	switch files := o.files; {
	case o.tls != nil && files != tlsFiles{}:
		return endpoint{}, invalid("WithTLSConfig says all of TLS; put the files into it")
	case o.tls != nil || files != tlsFiles{}:
		if scheme == http || isUnix(host) {
			return endpoint{}, invalid("there is no TLS to %s; write https://host:port", target)
		}
	case scheme == https:
		// Nothing is given.
	case !isLocal(host) && os.Getenv("HEADRACE_TLS_CA") != "":
		return endpoint{}, invalid("HEADRACE_TLS_CA is set, and %s would be spoken to in the clear; "+
			"write https://%s, or unset it", host, host)
	}
	if o.tls != nil {
		to.tls = o.tls.Clone()
	} else if scheme == https || o.files != (tlsFiles{}) {
		config, err := o.files.orEnvironment().config()
		if err != nil {
			return endpoint{}, err
		}
		to.tls = config
	}
	token, err := plainToken(o)
	if err != nil {
		return endpoint{}, err
	}
	if token != "" && to.tls == nil && !isLocal(host) {
		return endpoint{}, invalid("the token would travel to %s in the clear; connect to https://%s, "+
			"or unset HEADRACE_TOKEN", host, host)
	}
	to.token = token
	return to, nil
}

func splitScheme(target string) (scheme, host string) {
	for _, scheme := range []string{https, http} {
		if len(target) >= len(scheme) && strings.EqualFold(target[:len(scheme)], scheme) {
			host := strings.TrimRight(target[len(scheme):], "/")
			if host == "" {
				host = defaultTarget
			}
			return scheme, host
		}
	}
	return "", target
}

// withPort gives a host without a port Headrace's own, since gRPC's default is a web server's.
func withPort(target string) string {
	if strings.Contains(target, "/") || isUnix(target) {
		return target
	}
	if strings.HasPrefix(target, "[") {
		if strings.Contains(target, "]:") {
			return target
		}
		return target + ":" + defaultPort
	}
	switch strings.Count(target, ":") {
	case 0:
		return target + ":" + defaultPort
	case 1:
		return target
	default: // an IPv6 address without its brackets
		return net.JoinHostPort(target, defaultPort)
	}
}

// checkTarget refuses what gRPC would find out at the first call only. What has a scheme of gRPC's,
// such as dns:///, is left to it.
func checkTarget(scheme, target, given string) error {
	if isUnix(target) || scheme == "" && strings.Contains(target, "://") {
		return nil
	}
	if strings.Contains(target, "/") {
		return invalid("%s has a path, and there is none; write https://host:port", given)
	}
	host, port, err := net.SplitHostPort(target)
	if err == nil && target[0] == '[' {
		_, err = netip.ParseAddr(host)
	}
	if err != nil || strings.ContainsFunc(host, unicode.IsSpace) || strings.ContainsAny(host, "@?#") {
		return invalid("%s is no target; write host:port, https://host:port or unix:/path", given)
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		return invalid("%s is no target: a port is a number from 1 to 65535", given)
	}
	return nil
}

func isUnix(target string) bool {
	return strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:")
}

// isLocal reports whether only this machine can be meant.
func isLocal(target string) bool {
	if isUnix(target) {
		return true
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return false
	}
	if address, err := netip.ParseAddr(host); err == nil {
		return address.IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}

// plainToken gives the token as it is sent: without what a file or a header may have around it.
func plainToken(o *options) (string, error) {
	token := os.Getenv("HEADRACE_TOKEN")
	if o.token != nil {
		token = *o.token
	}
	token = strings.TrimSpace(token)
	const bearer = "bearer "
	if len(token) >= len(bearer) && strings.EqualFold(token[:len(bearer)], bearer) {
		token = strings.TrimSpace(token[len(bearer):])
	}
	if !isPrintable(token) || strings.Contains(token, " ") {
		return "", invalid("the token has characters that none has; look at HEADRACE_TOKEN")
	}
	return token, nil
}

// isPrintable reports whether the text can be the value of a header as it is.
func isPrintable(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

// tlsFiles are files in PEM; "" where there is none.
type tlsFiles struct {
	ca, certificate, key string
}

func (f tlsFiles) orEnvironment() tlsFiles {
	if f.ca == "" {
		f.ca = os.Getenv("HEADRACE_TLS_CA")
	}
	if f.certificate == "" && f.key == "" {
		f.certificate, f.key = os.Getenv("HEADRACE_CLIENT_CERT"), os.Getenv("HEADRACE_CLIENT_KEY")
	}
	return f
}

func (f tlsFiles) config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, invalid("the authorities of TLS cannot be read: %v", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, invalid("%s has no certificate in PEM", f.ca)
		}
	}
	if (f.certificate == "") != (f.key == "") {
		return nil, invalid("a client's certificate and its key go together; give both, or set both " +
			"HEADRACE_CLIENT_CERT and HEADRACE_CLIENT_KEY")
	}
	if f.certificate != "" {
		pair, err := tls.LoadX509KeyPair(f.certificate, f.key)
		if err != nil {
			return nil, invalid("the client's certificate cannot be used: %v", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
