// Open bundles in transformers.js and continue prompts greedily.
// Arguments: the folder that holds node_modules, the cases as JSON. The data type is the bundle's own default.
import { createRequire } from 'node:module';
import { basename, dirname } from 'node:path';
import { pathToFileURL } from 'node:url';

const [home, cases] = process.argv.slice(2);
const entry = createRequire(home + '/').resolve('@huggingface/transformers');
const { env, AutoModelForCausalLM, AutoTokenizer, Tensor } = await import(pathToFileURL(entry));
env.allowRemoteModels = false;

const row = (values) => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);

async function answer({ bundle, prompt, tokens, text }) {
  env.localModelPath = dirname(bundle);
  const model = await AutoModelForCausalLM.from_pretrained(basename(bundle), { device: 'cpu' });
  const out = await model.generate({
    input_ids: row(prompt),
    attention_mask: row(prompt.map(() => 1)),
    max_new_tokens: tokens,
    do_sample: false,
  });
  const tokenizer = await AutoTokenizer.from_pretrained(basename(bundle));
  const ids = out.tolist()[0].map(Number).slice(prompt.length);
  return { ids, text: tokenizer.encode(text, { add_special_tokens: false }) };
}

const answers = [];
for (const one of JSON.parse(cases)) answers.push(await answer(one));
console.log(JSON.stringify(answers));
