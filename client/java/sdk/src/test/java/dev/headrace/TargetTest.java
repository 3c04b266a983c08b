package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.headrace.v1.ErrorReason;
import io.grpc.Status;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class TargetTest {
  @ParameterizedTest
  @CsvSource({
    "gpu.example, gpu.example:50151",
    "gpu.example:7001, gpu.example:7001",
    "https://gpu.example, gpu.example:50151",
    "HTTPS://gpu.example:7001/, gpu.example:7001",
    "http://gpu.example, gpu.example:50151",
    "https://, 127.0.0.1:50151",
    "unix:/run/headrace.sock, unix:/run/headrace.sock",
    "dns:///gpu.example:7001, dns:///gpu.example:7001",
    "::1, [::1]:50151",
    "[::1], [::1]:50151",
    "[::1]:7001, [::1]:7001",
    "fe80::1%eth0, [fe80::1%eth0]:50151",
    "gpu.example:65535, gpu.example:65535",
  })
  void isGivenAsGrpcTakesIt(String given, String expected) {
    assertEquals(expected, Target.resolve(given));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "https://gpu.example/v1",
        "http://gpu.example:7001/v1/",
        "gpu.example/v1",
        "gpu.example:7001/v1",
        "127.0.0.1:99999",
        "gpu.example:65536",
        "gpu.example:0",
        "gpu.example:abc",
        "gpu.example:-1",
        "gpu.example:",
        "https://gpu.example:99999",
        "[::1]:99999",
        "[::1]:abc",
        "[gpu.example]:7001",
        "gpu.example:7001:7002",
        ":7001",
        "user@gpu.example",
        "gpu example",
        "gpu.example: 7001",
        "dns:///gpu example:7001",
      })
  void thatIsNoneIsRefusedAndNamed(String given) {
    HeadraceException error = assertThrows(HeadraceException.class, () -> Target.resolve(given));
    assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
    assertEquals(ErrorReason.ERROR_REASON_INVALID_REQUEST, error.reason());
    assertTrue(error.message().contains(given), error.message());
  }

  @ParameterizedTest
  @CsvSource({
    "127.0.0.1:50151, true",
    "127.255.0.9:50151, true",
    "LocalHost:50151, true",
    "[::1]:50151, true",
    "[0:0:0:0:0:0:0:1]:50151, true",
    "unix:/run/headrace.sock, true",
    "127.0.0.1.example:50151, false",
    "127.0.0.256:50151, false",
    "localhost.example:50151, false",
    "10.0.0.1:50151, false",
    "0.0.0.0:50151, false",
    "[::]:50151, false",
    "[fe80::1]:50151, false",
    "dns:///127.0.0.1:50151, false",
  })
  void isLocalWhereOnlyThisMachineCanBeMeant(String target, boolean local) {
    assertEquals(local, Target.isLocal(target));
  }
}
