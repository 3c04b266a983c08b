package dev.headrace;

import io.grpc.ChannelCredentials;
import io.grpc.ChoiceChannelCredentials;
import io.grpc.InsecureChannelCredentials;
import io.grpc.TlsChannelCredentials;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;

/**
 * A server and the way to it: where it is, by TLS or not, and as whom. Opens nothing.
 *
 * @param target as gRPC takes it
 * @param credentials those of the connection
 * @param token what every call carries; empty: nothing
 */
record Endpoint(String target, ChannelCredentials credentials, String token) {

  /** What a client is made with; null is what it leaves open, and the environment says. */
  record Settings(
      String target,
      ChannelCredentials credentials,
      String token,
      Path authorities,
      Path certificate,
      Path key) {}

  /**
   * Gives the endpoint that the settings mean.
   *
   * @throws HeadraceException a token would travel in the clear, options contradict each other, or
   *     a file cannot be read
   */
  static Endpoint resolve(Settings settings, Map<String, String> environment) {
    String where = first(settings.target(), environment.get("HEADRACE_HOST"), Target.DEFAULT);
    String target = Target.resolve(where);
    boolean local = Target.isLocal(target);
    ChannelCredentials credentials = settings.credentials();
    boolean files = settings.authorities() != null || settings.certificate() != null;
    if (files && (credentials != null || !Target.isHttps(where))) {
      throw HeadraceException.invalid(
          credentials != null
              ? "certificates are given twice, as files and as credentials; leave one of them out"
              : where + " would be spoken to without the certificates; write https://" + target);
    }
    if (credentials == null) {
      credentials =
          Target.isHttps(where) ? tls(settings, environment) : InsecureChannelCredentials.create();
    }
    boolean clear = mayBeClear(credentials);
    if (clear && Target.isHttps(where)) {
      throw HeadraceException.invalid(
          where + " asks for TLS, and the credentials do without; leave them out");
    }
    if (clear && !local && !environment.getOrDefault("HEADRACE_TLS_CA", "").isEmpty()) {
      throw HeadraceException.invalid(
          "HEADRACE_TLS_CA is set, and "
              + target
              + " would be spoken to in the clear; write https://"
              + target
              + ", or unset it");
    }
    String token =
        secret(
            settings.token() == null
                ? environment.getOrDefault("HEADRACE_TOKEN", "")
                : settings.token());
    if (clear && !local && !token.isEmpty()) {
      throw HeadraceException.invalid(
          "the token would travel to "
              + target
              + " in the clear; connect to https://"
              + target
              + ", or unset HEADRACE_TOKEN");
    }
    return new Endpoint(target, credentials, token);
  }

  /** Whether a connection by these may be one in the clear: one such of several is enough. */
  private static boolean mayBeClear(ChannelCredentials credentials) {
    ChannelCredentials bare = credentials.withoutBearerTokens();
    return bare instanceof ChoiceChannelCredentials choice
        ? choice.getCredentialsList().stream().anyMatch(Endpoint::mayBeClear)
        : bare instanceof InsecureChannelCredentials;
  }

  /** The token as it is sent: what a file or a header may have around it is left out. */
  private static String secret(String token) {
    token = token.strip();
    if (token.regionMatches(true, 0, "bearer ", 0, 7)) {
      token = token.substring(7).strip();
    }
    if (token.chars().anyMatch(c -> c <= ' ' || c > '~')) {
      throw HeadraceException.invalid(
          "the token has characters that none has; look at HEADRACE_TOKEN");
    }
    return token;
  }

  private static ChannelCredentials tls(Settings settings, Map<String, String> environment) {
    byte[] authorities = read(settings.authorities(), environment, "HEADRACE_TLS_CA");
    byte[] certificate = read(settings.certificate(), environment, "HEADRACE_CLIENT_CERT");
    byte[] key = read(settings.key(), environment, "HEADRACE_CLIENT_KEY");
    if ((certificate == null) != (key == null)) {
      throw HeadraceException.invalid(
          "HEADRACE_CLIENT_CERT and HEADRACE_CLIENT_KEY go together; set both");
    }
    try {
      TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder();
      if (authorities != null) {
        tls.trustManager(new ByteArrayInputStream(authorities));
      }
      if (certificate != null) {
        tls.keyManager(new ByteArrayInputStream(certificate), new ByteArrayInputStream(key));
      }
      return tls.build();
    } catch (IOException error) {
      throw HeadraceException.invalid("the certificates cannot be read: " + error, error);
    }
  }

  private static byte[] read(Path given, Map<String, String> environment, String name) {
    String path = given == null ? environment.getOrDefault(name, "") : given.toString();
    if (path.isEmpty()) {
      return null;
    }
    if (path.startsWith("~/")) {
      path = System.getProperty("user.home") + path.substring(1);
    }
    try {
      return Files.readAllBytes(Path.of(path));
    } catch (IOException | RuntimeException error) {
      String what = given == null ? name + " names a file that" : "a certificate or key";
      throw HeadraceException.invalid(what + " cannot be read: " + error, error);
    }
  }

  private static String first(String... candidates) {
    for (String candidate : candidates) {
      if (candidate != null && !candidate.isBlank()) {
        return candidate.strip();
      }
    }
    throw new AssertionError("the last one is there");
  }

  @Override
  public String toString() {
    return target; // and never the token
  }
}
