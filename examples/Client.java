import java.io.IOException;
import java.net.ConnectException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * Has image files classified, from Java 17 or later without a library: java Client.java photo.jpg …
 *
 * <p>From the environment: TTC_URL, TTC_STREAM, TTC_TOKEN. What the service refused (429, 503) or
 * found no connection is sent again, as late as Retry-After says and within BUDGET. What was lost on
 * its way back is not, nor is what a proxy refused, whose 503 is no problem document: the service
 * may have learned from the image already.
 */
public class Client {
  private static final Duration BUDGET = Duration.ofSeconds(30); // for an image
  private static final Map<String, String> GIVEN = System.getenv();
  private static final String URL = GIVEN.getOrDefault("TTC_URL", "http://127.0.0.1:8000");
  private static final CountDownLatch STOP = new CountDownLatch(1);
  private static final CountDownLatch DONE = new CountDownLatch(1);

  // Else each first request offers an upgrade to HTTP/2.
  private static final HttpClient HTTP =
      HttpClient.newBuilder()
          .version(HttpClient.Version.HTTP_1_1)
          .connectTimeout(Duration.ofSeconds(10))
          .build();

  public static void main(String[] files) throws InterruptedException {
    // After a signal the request in hand is answered, and no further one is sent.
    Runtime.getRuntime()
        .addShutdownHook(
            new Thread(
                () -> {
                  STOP.countDown();
                  try {
                    DONE.await();
                  } catch (InterruptedException ended) {
                    Thread.currentThread().interrupt();
                  }
                }));
    int status = 0;
    try {
      for (String file : files) {
        if (STOP.getCount() == 0) {
          break;
        }
        String answer = predict(Path.of(file));
        if (answer != null) {
          System.out.println(answer);
        }
      }
    } catch (IOException error) {
      System.err.println(error.getMessage());
      status = 1;
    } finally {
      DONE.countDown();
    }
    System.exit(status);
  }

  private static boolean isRefused(HttpResponse<String> response) {
    String type = response.headers().firstValue("Content-Type").orElse("");
    return (response.statusCode() == 429 || response.statusCode() == 503)
        && type.startsWith("application/problem+json");
  }

  /** The answer as JSON; null where a signal came first. */
  private static String predict(Path file) throws IOException, InterruptedException {
    String stream =
        URLEncoder.encode(GIVEN.getOrDefault("TTC_STREAM", "java"), StandardCharsets.UTF_8);
    HttpRequest.Builder request =
        HttpRequest.newBuilder(URI.create(URL + "/predict?stream=" + stream))
            .timeout(Duration.ofSeconds(60))
            .header("Content-Type", "image/jpeg")
            .POST(BodyPublishers.ofFile(file));
    if (GIVEN.containsKey("TTC_TOKEN")) {
      request.header("Authorization", "Bearer " + GIVEN.get("TTC_TOKEN"));
    }
    long end = System.nanoTime() + BUDGET.toNanos();
    for (long backoff = 250; ; backoff *= 2) {
      String why;
      long asked = 0;
      try {
        HttpResponse<String> response = HTTP.send(request.build(), BodyHandlers.ofString());
        if (response.statusCode() < 300) {
          return response.body();
        }
        why = response.body();
        if (!isRefused(response)) {
          throw new IOException(why);
        }
        asked =
            response
                .headers()
                .firstValue("Retry-After")
                .filter(text -> text.matches("[0-9]{1,6}"))
                .map(text -> 1000 * Long.parseLong(text))
                .orElse(0L);
      } catch (ConnectException error) {
        why = "Nothing answers at " + URL + ".";
      }
      long pause = asked + ThreadLocalRandom.current().nextLong(backoff);
      if (System.nanoTime() + 1_000_000 * pause > end) {
        throw new IOException(why);
      }
      if (STOP.await(pause, TimeUnit.MILLISECONDS)) {
        return null;
      }
    }
  }
}
