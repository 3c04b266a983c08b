package dev.headrace;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import java.util.List;
import java.util.Map;

/** The texts of a request before they are sent. */
final class Texts {
  private Texts() {}

  /**
   * Refuses half a surrogate pair, which UTF-8 cannot carry: Protobuf would send a question mark in
   * its place, and nobody would know.
   *
   * @throws HeadraceException INVALID_ARGUMENT: there is one; the violation has the field
   */
  static void check(Message request) {
    check(request, "");
  }

  private static void check(Message message, String path) {
    for (Map.Entry<FieldDescriptor, Object> set : message.getAllFields().entrySet()) {
      FieldDescriptor field = set.getKey();
      FieldDescriptor.JavaType type = field.getJavaType();
      if (type != FieldDescriptor.JavaType.STRING && type != FieldDescriptor.JavaType.MESSAGE) {
        continue;
      }
      String name = path + field.getName();
      if (set.getValue() instanceof List<?> items) {
        for (int i = 0; i < items.size(); i++) {
          checkValue(items.get(i), name + "[" + i + "]");
        }
      } else {
        checkValue(set.getValue(), name);
      }
    }
  }

  private static void checkValue(Object value, String path) {
    if (value instanceof Message message) {
      check(message, path + ".");
    } else if (value instanceof String text && !isWhole(text)) {
      throw HeadraceException.invalidField(
          path, "the text has half a surrogate pair, which UTF-8 cannot carry");
    }
  }

  private static boolean isWhole(String text) {
    for (int i = 0; i < text.length(); i++) {
      if (!Character.isSurrogate(text.charAt(i))) {
        continue;
      }
      if (i + 1 == text.length() || !Character.isSurrogatePair(text.charAt(i), text.charAt(++i))) {
        return false;
      }
    }
    return true;
  }
}
