package headrace

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
)

func TestWhereATargetIs(t *testing.T) {
	clean(t)
	for given, wanted := range map[string]string{
		"":                          "127.0.0.1:50151",
		"gpu.example":               "gpu.example:50151",
		"gpu.example:7":             "gpu.example:7",
		"http://gpu.example":        "gpu.example:50151",
		"HTTPS://gpu.example:7/":    "gpu.example:7",
		"https://":                  "127.0.0.1:50151",
		"::1":                       "[::1]:50151",
		"[::1]":                     "[::1]:50151",
		"[::1]:7":                   "[::1]:7",
		"unix:/run/h.sock":          "unix:/run/h.sock",
		"unix:h.sock":               "unix:h.sock",
		"dns:///gpu.example:7":      "dns:///gpu.example:7",
		"https://dns:///gpu:7":      "",
		" gpu.example:7\n":          "gpu.example:7",
		"fe80::1%eth0":              "[fe80::1%eth0]:50151",
		"passthrough:///gpu":        "passthrough:///gpu",
		"https://gpu.example:7/api": "",
		"gpu.example:7/api":         "",
		"gpu.example/api":           "",
		"gpu.example:99999":         "",
		"gpu.example:65536":         "",
		"gpu.example:0":             "",
		"gpu.example:abc":           "",
		"gpu.example:+7":            "",
		"gpu.example:":              "",
		"https://gpu.example:99999": "",
		"[::1]:abc":                 "",
		"[gpu]:7":                   "",
		"gpu:7:8":                   "",
		"gpu example":               "",
		"user@gpu.example":          "",
	} {
		to, err := resolveEndpoint(given, &options{})
		if to.target != wanted || (err != nil) != (wanted == "") {
			t.Errorf("%q is at %q (%v), not %q", given, to.target, err, wanted)
		}
		if err != nil &&
			(!errors.Is(err, ReasonInvalidRequest) || !strings.Contains(err.Error(), given)) {
			t.Errorf("%q is refused by %v", given, err)
		}
		if secure := strings.EqualFold(given[:min(5, len(given))], "https"); wanted != "" &&
			secure != (to.tls != nil) {
			t.Errorf("%q: TLS is %v", given, to.tls != nil)
		}
	}
	t.Setenv("HEADRACE_HOST", "there:9")
	if to, _ := resolveEndpoint("", &options{}); to.target != "there:9" {
		t.Errorf("HEADRACE_HOST is not where to go, but %q", to.target)
	}
}

func TestATokenStaysOnThisMachineUnlessThereIsTLS(t *testing.T) {
	clean(t)
	for target, allowed := range map[string]bool{
		"127.0.0.1": true, "localhost:9": true, "[::1]:9": true, "unix:/run/h.sock": true,
		"https://gpu.example": true, "gpu.example": false, "10.0.0.1:9": false,
		"http://gpu.example": false, "127.0.0.1.example:9": false, "dns:///gpu.example:9": false,
	} {
		_, err := New(target, WithToken("hr_x"))
		if (err == nil) != allowed || err != nil && !errors.Is(err, ReasonInvalidRequest) {
			t.Errorf("a token to %s: %v", target, err)
		}
		t.Setenv("HEADRACE_TOKEN", "hr_x")
		if _, err := New(target); (err == nil) != allowed {
			t.Errorf("HEADRACE_TOKEN to %s: %v", target, err)
		}
		if _, err := New(target, WithToken("")); err != nil {
			t.Errorf("no token to %s: %v", target, err)
		}
	}
}

func TestATokenIsSentAsItIs(t *testing.T) {
	clean(t)
	for given, wanted := range map[string]string{
		" hr_x\n": "hr_x", "Bearer hr_x": "hr_x", "hr x": "", "hr_\x00": "", "hr_ä": "",
	} {
		to, err := resolveEndpoint("", &options{token: &given})
		if to.token != wanted || (err != nil) != (wanted == "") {
			t.Errorf("%q is %q, %v", given, to.token, err)
		}
	}
}

func TestOptionsThatCannotBeHonouredAreRefused(t *testing.T) {
	clean(t)
	for name, opts := range map[string][]Option{
		"there is no TLS":         {WithCA("ca.pem")},
		"cannot be read":          {WithTLSConfig(nil), WithCA("nowhere.pem")},
		"the timeout is":          {WithTimeout(-1)},
		"says all of TLS":         {WithTLSConfig(&tls.Config{}), WithCA("ca.pem")},
		"give both":               {WithClientCertificate("client.pem", "")},
		"certificate cannot":      {WithClientCertificate("nowhere.pem", "nowhere.pem")},
		"has no certificate":      {WithCA("endpoint_test.go")},
		"characters that none":    {WithToken("a b")},
		"is no way to unknown://": {},
	} {
		target := map[string]string{
			"there is no TLS": "http://localhost", "is no way to unknown://": "unknown://x/%zz",
		}[name]
		_, err := New(target, opts...)
		if !errors.Is(err, ReasonInvalidRequest) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Setenv("HEADRACE_TLS_CA", "ca.pem")
	if _, err := New("gpu.example"); !errors.Is(err, ReasonInvalidRequest) {
		t.Errorf("HEADRACE_TLS_CA without https: %v", err)
	}
	if _, err := New("localhost"); err != nil {
		t.Errorf("HEADRACE_TLS_CA and this machine: %v", err)
	}
}

func TestTLSTrustsTheAuthorityThatIsNamed(t *testing.T) {
	clean(t)
	file, certificate := selfSigned(t)
	scripted := &server{}
	address, _ := scripted.serve(t, "127.0.0.1:0",
		grpc.Creds(credentials.NewServerTLSFromCert(&certificate)))
	target := "https://" + address
	if err := getModel(context.Background(), connect(t, target, WithCA(file), WithToken("hr_x"))); err != nil {
		t.Fatal(err)
	}
	if got := scripted.header("authorization"); len(got) != 1 || got[0] != "Bearer hr_x" {
		t.Errorf("authorization is %q", got)
	}
	strange := connect(t, target)
	if err := getModel(context.Background(), strange); failed(t, err).Code != codes.Unavailable ||
		!strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority: %v", err)
	}
	t.Setenv("HEADRACE_TLS_CA", file)
	t.Setenv("HEADRACE_CLIENT_CERT", file)
	if _, err := New(target); !errors.Is(err, ReasonInvalidRequest) {
		t.Errorf("a certificate without its key: %v", err)
	}
	t.Setenv("HEADRACE_CLIENT_CERT", "")
	if err := getModel(context.Background(), connect(t, target)); err != nil {
		t.Errorf("the authority of the environment: %v", err)
	}
}

// selfSigned makes a certificate of 127.0.0.1, and a file of it.
func selfSigned(t *testing.T) (string, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
