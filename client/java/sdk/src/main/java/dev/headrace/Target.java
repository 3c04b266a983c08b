package dev.headrace;

import java.net.InetAddress;
import java.net.UnknownHostException;
import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Where a server is. Opens nothing and asks no name service. */
final class Target {
  static final int DEFAULT_PORT = 50151;
  static final String DEFAULT = "127.0.0.1:" + DEFAULT_PORT;

  private static final String HTTPS = "https://";
  private static final String HTTP = "http://";
  private static final Pattern LOOPBACK =
      Pattern.compile("127(\\.(25[0-5]|2[0-4]\\d|1?\\d?\\d)){3}");
  private static final Pattern IPV6 = Pattern.compile("[0-9a-fA-F:.]*:[0-9a-fA-F:.]*");

  private static final Pattern ADDRESS =
      Pattern.compile("(\\[[0-9a-fA-F:.]+(%[^\\[\\]]+)?]|[^\\[\\]:@?#/]+):(\\d{1,5})");

  private Target() {}

  /** Whether a target asks for TLS. */
  static boolean isHttps(String target) {
    return hasPrefix(target, HTTPS);
  }

  /** Whether only this machine can be meant: a Unix socket, or a loopback address. */
  static boolean isLocal(String target) {
    return target.startsWith("unix:")
        || isLoopback(target.substring(0, Math.max(0, target.lastIndexOf(':'))));
  }

  private static boolean isLoopback(String host) {
    if (host.startsWith("[") && host.endsWith("]")) {
      host = host.substring(1, host.length() - 1);
    }
    if (LOOPBACK.matcher(host).matches()) {
      return true;
    }
    if (!IPV6.matcher(host).matches()) {
      return host.equalsIgnoreCase("localhost");
    }
    try {
      return InetAddress.getByName("[" + host + "]").isLoopbackAddress();
    } catch (UnknownHostException noAddress) {
      return false;
    }
  }

  /**
   * Gives a target as gRPC takes it: "host:port", "unix:/path", or any other that gRPC knows.
   *
   * <p>"https://host:port" and "http://host:port" are host:port. A host without a port gets
   * Headrace's own, since gRPC's default is a web server's.
   *
   * @throws HeadraceException the address has a path or spaces, or its port is none
   */
  static String resolve(String where) {
    String target = where;
    for (String scheme : new String[] {HTTPS, HTTP}) {
      if (hasPrefix(where, scheme)) { // It says whether there is TLS, and not where.
        target = where.substring(scheme.length()).replaceAll("/+$", "");
        if (target.isEmpty()) {
          return DEFAULT;
        }
        return checked(withPort(target), where);
      }
    }
    if (target.startsWith("unix:")) {
      return target;
    }
    if (target.contains("://") && target.chars().noneMatch(Character::isWhitespace)) {
      return target; // gRPC's own, such as dns:///host:port
    }
    return checked(withPort(target), where);
  }

  private static String checked(String target, String where) {
    Matcher address = ADDRESS.matcher(target);
    if (target.contains("/")) {
      throw HeadraceException.invalid(
          where + " has a path, and there is none; write https://host:port");
    }
    if (!address.matches() || target.chars().anyMatch(Character::isWhitespace)) {
      throw HeadraceException.invalid(
          where + " is no target; write host:port, https://host:port or unix:/path");
    }
    int port = Integer.parseInt(address.group(3));
    if (port < 1 || port > 65535) {
      throw HeadraceException.invalid(where + " is no target: a port is a number from 1 to 65535");
    }
    return target;
  }

  private static String withPort(String target) {
    if (target.startsWith("[")) {
      return target.contains("]:") ? target : target + ":" + DEFAULT_PORT;
    }
    return switch ((int) target.chars().filter(c -> c == ':').count()) {
      case 0 -> target + ":" + DEFAULT_PORT;
      case 1 -> target;
      default -> "[" + target + "]:" + DEFAULT_PORT; // an IPv6 address without its brackets
    };
  }

  private static boolean hasPrefix(String target, String scheme) {
    return target.toLowerCase(Locale.ROOT).startsWith(scheme);
  }
}
