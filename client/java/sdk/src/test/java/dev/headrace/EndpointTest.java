package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.headrace.v1.ErrorReason;
import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.ChoiceChannelCredentials;
import io.grpc.CompositeChannelCredentials;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Metadata;
import io.grpc.TlsChannelCredentials;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executor;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class EndpointTest {
  private static final CallCredentials NOTHING =
      new CallCredentials() {
        @Override
        public void applyRequestMetadata(
            RequestInfo info, Executor executor, MetadataApplier applier) {
          applier.apply(new Metadata());
        }
      };

  private static Endpoint resolve(String target, String token, Map<String, String> environment) {
    return Endpoint.resolve(
        new Endpoint.Settings(target, null, token, null, null, null), environment);
  }

  private static String refused(String target, String token, Map<String, String> environment) {
    HeadraceException error =
        assertThrows(HeadraceException.class, () -> resolve(target, token, environment));
    assertEquals(ErrorReason.ERROR_REASON_INVALID_REQUEST, error.reason());
    return error.message();
  }

  @Test
  void whatIsLeftOpenTheEnvironmentSays() {
    Map<String, String> environment =
        Map.of("HEADRACE_HOST", "https://gpu.example", "HEADRACE_TOKEN", " Bearer hr_a_b\n");
    Endpoint endpoint = resolve(null, null, environment);
    assertEquals("gpu.example:50151", endpoint.target());
    assertInstanceOf(TlsChannelCredentials.class, endpoint.credentials());
    assertEquals("hr_a_b", endpoint.token());
    assertEquals("gpu.example:50151", endpoint.toString());
  }

  @Test
  void whatIsSaidHolds() {
    Map<String, String> environment =
        Map.of("HEADRACE_HOST", "https://gpu.example", "HEADRACE_TOKEN", "hr_a_b");
    Endpoint endpoint = resolve("127.0.0.1:7001", "", environment);
    assertEquals("127.0.0.1:7001", endpoint.target());
    assertInstanceOf(InsecureChannelCredentials.class, endpoint.credentials());
    assertEquals("", endpoint.token());
  }

  @Test
  void withoutAnythingItIsThisMachine() {
    assertEquals("127.0.0.1:50151", resolve(null, null, Map.of()).target());
  }

  @Test
  void aTokenDoesNotTravelInTheClear() {
    assertTrue(refused("gpu.example", "hr_a_b", Map.of()).contains("https://gpu.example:50151"));
    refused(null, null, Map.of("HEADRACE_HOST", "10.0.0.1", "HEADRACE_TOKEN", "hr_a_b"));
    assertEquals("hr_a_b", resolve("localhost", "hr_a_b", Map.of()).token());
    assertEquals("hr_a_b", resolve("https://gpu.example", "hr_a_b", Map.of()).token());
  }

  @Test
  void credentialsThatDoNotEncryptAreNone() {
    ChannelCredentials none = InsecureChannelCredentials.create();
    for (String target : new String[] {"gpu.example", "https://127.0.0.1"}) {
      HeadraceClient.Builder builder =
          HeadraceClient.builder()
              .environment(Map.of())
              .target(target)
              .credentials(none)
              .token("hr_a_b");
      assertThrows(HeadraceException.class, builder::build);
    }
  }

  @Test
  void credentialsThatMayDoWithoutEncryptionAreNone() {
    ChannelCredentials none = InsecureChannelCredentials.create();
    ChannelCredentials tls = TlsChannelCredentials.create();
    List<ChannelCredentials> wrapped =
        List.of(
            ChoiceChannelCredentials.create(none),
            ChoiceChannelCredentials.create(tls, none),
            ChoiceChannelCredentials.create(ChoiceChannelCredentials.create(none)),
            ChoiceChannelCredentials.create(CompositeChannelCredentials.create(none, NOTHING)),
            CompositeChannelCredentials.create(none, NOTHING),
            CompositeChannelCredentials.create(ChoiceChannelCredentials.create(none), NOTHING));
    for (ChannelCredentials credentials : wrapped) {
      for (String target : new String[] {"gpu.example", "https://127.0.0.1"}) {
        assertThrows(HeadraceException.class, () -> withToken(target, credentials));
      }
      assertEquals("hr_a_b", withToken("127.0.0.1", credentials).token());
    }
    List<ChannelCredentials> encrypting =
        List.of(
            ChoiceChannelCredentials.create(tls),
            CompositeChannelCredentials.create(ChoiceChannelCredentials.create(tls), NOTHING));
    for (ChannelCredentials credentials : encrypting) {
      assertEquals("hr_a_b", withToken("gpu.example", credentials).token());
    }
  }

  private static Endpoint withToken(String target, ChannelCredentials credentials) {
    return Endpoint.resolve(
        new Endpoint.Settings(target, credentials, "hr_a_b", null, null, null), Map.of());
  }

  @Test
  void aTokenIsOneWord() {
    String message = refused("127.0.0.1", "hr a", Map.of());
    assertFalse(message.contains("hr a"));
    refused("127.0.0.1", "hr_ä", Map.of());
    refused("127.0.0.1", "hr_a\nx", Map.of());
  }

  @Test
  void nothingTravelsInTheClearWhereAuthoritiesAreNamed() {
    refused("gpu.example", null, Map.of("HEADRACE_TLS_CA", "ca.crt"));
  }

  @Test
  void aCertificateComesWithItsKey(@TempDir Path directory) throws IOException {
    Path file = Files.writeString(directory.resolve("client.crt"), "x");
    for (String name : new String[] {"HEADRACE_CLIENT_CERT", "HEADRACE_CLIENT_KEY"}) {
      assertTrue(
          refused("https://gpu.example", null, Map.of(name, file.toString())).contains("both"));
    }
  }

  @Test
  void aFileThatCannotBeReadIsNamed() {
    String message =
        refused("https://gpu.example", null, Map.of("HEADRACE_TLS_CA", "/nowhere/ca.crt"));
    assertTrue(message.contains("HEADRACE_TLS_CA"), message);
    assertTrue(message.contains("/nowhere/ca.crt"), message);
  }

  @Test
  void certificatesAreNeverLeftUnused(@TempDir Path directory) throws IOException {
    Path file = Files.writeString(directory.resolve("ca.crt"), "x");
    HeadraceClient.Builder clear =
        HeadraceClient.builder().environment(Map.of()).target("127.0.0.1").authorities(file);
    assertTrue(
        assertThrows(HeadraceException.class, clear::build)
            .message()
            .contains("https://127.0.0.1"));
    ChannelCredentials own = TlsChannelCredentials.create();
    HeadraceClient.Builder twice =
        HeadraceClient.builder()
            .environment(Map.of())
            .target("https://127.0.0.1")
            .authorities(file)
            .credentials(own);
    assertTrue(assertThrows(HeadraceException.class, twice::build).message().contains("twice"));
  }

  @Test
  void authoritiesThatAreNoneAreRefused(@TempDir Path directory) throws IOException {
    Path file = Files.writeString(directory.resolve("ca.crt"), "no certificate");
    HeadraceClient.Builder builder =
        HeadraceClient.builder()
            .environment(Map.of())
            .target("https://127.0.0.1")
            .authorities(file);
    assertTrue(assertThrows(HeadraceException.class, builder::build).message().contains("PEM"));
  }
}
