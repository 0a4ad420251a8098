// A compiled model on a Snapdragon phone: token ids in, greedy token ids out. Same as python_npu.py and npu.cpp.
//
// build.gradle.kts (see docs/npu-device.md for versions and manifest entries):
//
//     android { defaultConfig { minSdk = 27 }; packaging { jniLibs.useLegacyPackaging = true } }
//     dependencies {
//         implementation("com.microsoft.onnxruntime:onnxruntime-android:1.29.0")
//         runtimeOnly("com.qualcomm.qti:onnxruntime-android-qnn:2.7.0")
//         runtimeOnly("com.qualcomm.qti:qnn-runtime:2.51.0")
//     }
//
// Type-checked with Kotlin 2.4 against stubs of the few classes of ONNX Runtime's Java API and of Android that it uses,
// written from their sources. Not built with the Android SDK, not run on a phone.

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtHardwareDevice.OrtHardwareDeviceType
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import android.content.Context
import android.system.Os
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.LongBuffer

private const val PROVIDER = "QNNExecutionProvider"
private const val PAST = "past_key_values."

/** `folder` has the contents of npu/<target>; copy it to the app's files first, a session cannot open it in the APK. */
class Npu(context: Context, folder: File) : AutoCloseable {
    private val env = OrtEnvironment.getEnvironment()
    private val host: OrtSession
    private val prefill: List<OrtSession>
    private val decode: List<OrtSession>
    private val cache = HashMap<String, Past>()
    private var width = 1

    /** Tokens in the cache, and number of slots. */
    var length = 0
        private set
    val slots: Int

    init {
        // The NPU-side library is loaded from here and must be a file: hence useLegacyPackaging.
        val libraries = context.applicationInfo.nativeLibraryDir
        Os.setenv("ADSP_LIBRARY_PATH", libraries, true)
        env.registerExecutionProviderLibrary(PROVIDER, "$libraries/libonnxruntime_providers_qnn.so")
        val npu = env.epDevices.filter { it.name == PROVIDER && it.device.type == OrtHardwareDeviceType.NPU }
        val options = OrtSession.SessionOptions()
        options.addConfigEntry("session.disable_cpu_ep_fallback", "1")
        options.addExecutionProvider(
            npu.take(1),
            mapOf("backend_path" to "$libraries/libQnnHtp.so", "htp_performance_mode" to "burst"),
        )
        host = env.createSession(File(folder, "host.onnx").path, OrtSession.SessionOptions())
        prefill = chain(folder, "prefill").map { env.createSession(it.path, options) }
        decode = chain(folder, "decode").map { env.createSession(it.path, options) }
        for ((name, node) in prefill.flatMap { it.inputInfo.entries }.map { it.key to it.value }) {
            val info = node.info as TensorInfo
            if (name == "inputs_embeds") width = info.shape[1].toInt()
            if (name.startsWith(PAST)) cache[name] = Past(info)
        }
        slots = cache.values.first().shape[2].toInt()
    }

    /** Feeds a prompt or a token, and returns the most likely next token. */
    fun feed(ids: LongArray): Long {
        val across = if (ids.size == 1) 1 else width
        var next = 0L
        for (start in ids.indices step across) {
            next = run(ids.copyOfRange(start, minOf(start + across, ids.size)), across)
        }
        return next
    }

    private fun run(ids: LongArray, across: Int): Long {
        check(length + ids.size <= slots) { "the cache has $slots slots" }
        val values = HashMap<String, OnnxTensor>()
        try {
            values["input_ids"] = row(ids.copyOf(across))
            values["position_ids"] = row(LongArray(across) { (length + it).toLong() })
            for ((name, past) in cache) values[name] = past.tensor(env)
            for (session in listOf(host) + if (across == 1) decode else prefill) {
                val given = session.run(session.inputNames.associateWith { values.getValue(it) })
                for (entry in given) values[entry.key] = entry.value as OnnxTensor
            }
            // The graphs return only the new keys and values; copy the rows of real tokens to their slots.
            for ((name, past) in cache) past.write(values.getValue(name.replace(PAST, "new.")), length, ids.size, across)
            length += ids.size
            val logits = values.getValue("logits").floatBuffer
            val vocabulary = logits.capacity() / across
            val first = (ids.size - 1) * vocabulary
            return (0 until vocabulary).maxByOrNull { logits.get(first + it) }!!.toLong()
        } finally {
            values.values.forEach { it.close() }
        }
    }

    private fun row(ids: LongArray) = OnnxTensor.createTensor(env, LongBuffer.wrap(ids), longArrayOf(1, ids.size.toLong()))

    override fun close() {
        (listOf(host) + prefill + decode).forEach { it.close() }
    }

    /** Keys or values of one layer, [1, heads, slots, size]: memory owned by this class, which tensors refer to. */
    private class Past(info: TensorInfo) {
        val shape: LongArray = info.shape
        private val type: OnnxJavaType = info.type
        private val rowBytes = shape[3].toInt() * type.size
        private val bytes: ByteBuffer =
            ByteBuffer.allocateDirect((shape[1] * shape[2]).toInt() * rowBytes).order(ByteOrder.nativeOrder())

        fun tensor(env: OrtEnvironment): OnnxTensor {
            bytes.rewind()
            return OnnxTensor.createTensor(env, bytes, shape, type)
        }

        fun write(fresh: OnnxTensor, place: Int, count: Int, across: Int) {
            val from = fresh.byteBuffer
            for (head in 0 until shape[1].toInt()) {
                from.limit((head * across + count) * rowBytes).position(head * across * rowBytes)
                bytes.position((head * shape[2].toInt() + place) * rowBytes)
                bytes.put(from)
            }
        }
    }
}

/** `prefill.onnx`, or `prefill.0.onnx`, `prefill.1.onnx`, ... if the model was split. */
private fun chain(folder: File, role: String): List<File> {
    val parts = generateSequence(0) { it + 1 }.map { File(folder, "$role.$it.onnx") }.takeWhile { it.exists() }.toList()
    return parts.ifEmpty { listOf(File(folder, "$role.onnx")) }
}
